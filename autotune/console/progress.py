"""Progress of a running job: a bar on a terminal or in a notebook, occasional lines in logs."""

from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from autotune.console.notebook_bar import NotebookBar
from autotune.console.output import err, is_interactive, say, with_unit
from autotune.jobs.progress import LogLines, Progress, clock, stage_text
from autotune.jobs.records import JobStage, TrialRecord

#: Without a terminal, a line is printed after every such share of the budget.
_LOG_SHARE = 0.1


def _bar() -> Bar | NotebookBar | None:
    """Return a bar for this terminal or notebook; None in logs."""
    if err.is_jupyter:
        return NotebookBar()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}"),
    )
    return Bar(*columns, console=err, transient=True) if is_interactive() else None


class ConsoleListener:
    """Shows a progress bar on a terminal and in a notebook, plain lines elsewhere. Use as a context manager."""

    def __init__(self, objective: str = "") -> None:
        """Show the best trial by ``objective``; a listener that gets no trials needs none."""
        self._objective = objective
        self._logged = 0.0
        self._lines = LogLines()
        #: Facts about the latest trial; empty before the first.
        self._facts = ""
        self._bar = _bar()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._show("Starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, text: str) -> None:
        if self._bar:
            self._show(text)
        elif self._lines.starts(text):
            say(text)

    def step(self, stage: JobStage) -> None:
        if self._bar:
            left = "" if stage.remaining_s is None else f" · {clock(stage.remaining_s)} left"
            count = "" if stage.total is None else f"{stage.done}/{stage.total}{left}"
            detail = f" · {stage.detail}" if stage.detail else ""
            self._show(stage.name + detail, stage.done, stage.total, count)
        elif not (self._facts and stage.detail) and self._lines.has(stage):
            # Once there are trials, their lines say enough about measurements.
            say(stage_text(stage))

    def trial(self, progress: Progress) -> None:
        self._facts = self._facts_of(progress)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.budget, facts=escape(self._facts))
        elif progress.done >= min(self._logged + _LOG_SHARE * progress.budget, progress.budget) > self._logged:
            self._logged = progress.done
            say(self._facts)

    def _show(self, text: str, done: int = 0, total: int | None = None, facts: str = "") -> None:
        """Show a stage in the bar; once there are trials, the bar counts them."""
        assert self._bar is not None
        text, facts = escape(text), escape(self._facts or facts)
        if self._task is not None and (self._facts or total is not None):
            self._bar.update(self._task, description=text, facts=facts)
            if not self._facts:
                self._bar.update(self._task, completed=done, total=total)
            return
        # A bar that had a total cannot lose it.
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, completed=done, total=total, facts=facts)

    def _facts_of(self, progress: Progress) -> str:
        left = "" if progress.remaining_s is None else f" · {clock(progress.remaining_s)} left"
        return f"{progress.done}/{progress.budget} · {self._best(progress.best)} · front {progress.front_size}{left}"

    def _best(self, best: TrialRecord | None) -> str:
        if best is None:
            return "none feasible yet"
        return f"best {with_unit(self._objective, best.figures.get(self._objective))}"
