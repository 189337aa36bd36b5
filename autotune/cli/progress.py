"""Progress of a running job on standard error: a bar on a terminal, occasional lines in logs."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from autotune.cli.output import err, is_interactive, say, with_unit
from autotune.jobs.progress import Progress
from autotune.jobs.records import TrialRecord

#: Without a terminal, a line is printed after every such share of the budget.
_LOG_SHARE = 0.1


class ConsoleListener:
    """Shows a progress bar on a terminal, plain lines elsewhere. Use as a context manager."""

    def __init__(self, objective: str) -> None:
        self._objective = objective
        self._logged = 0.0
        self._stage = ""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
        )
        self._bar = Bar(*columns, console=err, transient=True) if is_interactive() else None
        self._task = self._bar.add_task("Starting", total=None, facts="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, text: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=text)
        elif text != self._stage:
            say(text)
        self._stage = text

    def trial(self, progress: Progress) -> None:
        facts = self._facts(progress)
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                completed=progress.done,
                total=progress.budget,
                facts=facts,
            )
        elif progress.done >= min(self._logged + _LOG_SHARE * progress.budget, progress.budget) > self._logged:
            self._logged = progress.done
            say(facts)

    def _facts(self, progress: Progress) -> str:
        left = "" if progress.remaining_s is None else f" · {_clock(progress.remaining_s)} left"
        return f"{progress.done}/{progress.budget} · {self._best(progress.best)} · front {progress.front_size}{left}"

    def _best(self, best: TrialRecord | None) -> str:
        if best is None:
            return "none feasible yet"
        return f"best {with_unit(self._objective, best.figures.get(self._objective))}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
