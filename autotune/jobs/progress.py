"""How a running job reports its progress to a listener."""

import math
import time
from dataclasses import dataclass
from typing import Protocol

from autotune.jobs.records import JobStage, TrialRecord
from workers.progress import Stage, Step

#: Seconds after which a log may have another line about a stage, and those after which it must.
_LOG_PAUSE_S, _LOG_SILENCE_S = 10.0, 60.0
#: Share of a stage after which a log may have another line about it.
_LOG_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of the job after a trial."""

    #: Trials of the search recorded so far, and their budget.
    done: int
    budget: int
    #: Seconds searched so far, and an estimate of those left, final measurements included; None without one.
    elapsed_s: float
    remaining_s: float | None
    #: Best feasible trial in the job's first objective; None if none is feasible yet.
    best: TrialRecord | None
    #: Maps on the front.
    front_size: int


class Listener(Protocol):
    """Watches a running job."""

    def stage(self, text: str) -> None:
        """Handle the start of a stage, such as starting workers."""
        ...

    def step(self, stage: JobStage) -> None:
        """Handle a step of a stage, possibly from another thread than the one that drives the job."""
        ...

    def trial(self, progress: Progress) -> None:
        """Handle a recorded trial."""
        ...


class Silent:
    """A listener that ignores everything."""

    def stage(self, text: str) -> None:
        pass

    def step(self, stage: JobStage) -> None:
        pass

    def trial(self, progress: Progress) -> None:
        pass


class Pace:
    """Estimates the time left of a stage from the pace of its own steps."""

    def __init__(self) -> None:
        self._last: Step | None = None
        self._started_s = 0.0
        self._first = 0

    def remaining_s(self, step: Step) -> float | None:
        """Return the seconds that the stage of ``step``, the latest one, has left; None if they cannot be estimated."""
        now_s = time.monotonic()
        last, self._last = self._last, step
        if last is None or last.stage is not step.stage or step.done < last.done or step.total != last.total:
            self._started_s, self._first = now_s, step.done
        done = step.done - self._first
        if step.total is None or not done:
            return None
        return (now_s - self._started_s) / done * (step.total - step.done)


def stage_of(step: Step, remaining_s: float | None = None) -> JobStage:
    """Return the stage that a worker's step belongs to, for people."""
    if step.stage is Stage.WAITING:
        return JobStage(name=f"{step.stage}: {step.detail}")
    return JobStage(name=step.stage.value, done=step.done, total=step.total, remaining_s=remaining_s)


def stage_text(stage: JobStage) -> str:
    """Return a stage as one line for people, such as ``Calibrating 3/16 · 0:12 left``."""
    count = "" if stage.total is None else f" {stage.done}/{stage.total}"
    detail = f" · {stage.detail}" if stage.detail else ""
    left = "" if stage.remaining_s is None else f" · {clock(stage.remaining_s)} left"
    return f"{stage.name}{count}{detail}{left}"


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class LogLines:
    """Chooses the steps that a log has a line about: the start of every stage, and now and then one more."""

    def __init__(self) -> None:
        self._name = ""
        self._share, self._at_s = 0.0, -math.inf

    def starts(self, name: str) -> bool:
        """Return whether the stage called ``name`` starts now, and note it."""
        is_new, self._name = name != self._name, name
        if is_new:
            self._share, self._at_s = 0.0, time.monotonic()
        return is_new

    def has(self, stage: JobStage) -> bool:
        """Return whether the log has a line about this step, and note it."""
        if self.starts(stage.name):
            return True
        now_s, share = time.monotonic(), stage.done / stage.total if stage.total else 0.0
        is_due = now_s - self._at_s >= _LOG_PAUSE_S and share - self._share >= _LOG_SHARE
        if is_due or now_s - self._at_s >= _LOG_SILENCE_S:
            self._share, self._at_s = share, now_s
            return True
        return False
