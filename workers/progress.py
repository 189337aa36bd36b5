"""How workers report what they are doing, while they do it."""

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

#: Minimum seconds between two reports of one stage.
_PAUSE_S = 0.25

T = TypeVar("T")


class Stage(enum.StrEnum):
    """What a worker is doing, in words for people."""

    LOADING = "Loading the model"
    CHECKING = "Checking full precision"
    CALIBRATING = "Calibrating"
    KERNELS = "Timing kernels"
    SENSITIVITIES = "Probing sensitivities"
    LATENCIES = "Probing latencies"
    RECOVERING = "Recovering blocks"
    ACCURACY = "Measuring accuracy"
    GENERATING = "Generating answers"
    LATENCY = "Measuring latency"
    WAITING = "Waiting for the device"

    @property
    def is_measuring(self) -> bool:
        """Whether it is part of measuring one map."""
        return self in (Stage.ACCURACY, Stage.GENERATING, Stage.LATENCY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a worker is in a stage."""

    stage: Stage
    #: Steps done, and all steps of the stage; None if they cannot be counted.
    done: int = 0
    total: int | None = None
    #: What else there is to say; empty if nothing.
    detail: str = ""


#: Gets every step of a worker, possibly from another thread than the one that works.
Report = Callable[[Step], None]


def silent(step: Step) -> None:
    """Ignore a step."""


class Throttled:
    """Passes on the first step of every stage, and then at most four a second."""

    def __init__(self, report: Report) -> None:
        """Pass steps on to ``report``."""
        self._report = report
        self._last: Step | None = None
        self._next_at = 0.0

    def __call__(self, step: Step) -> None:
        """Pass on ``step``, unless another one of its stage was passed on just before."""
        last, now_s = self._last, time.monotonic()
        is_new = last is None or (last.stage, last.detail) != (step.stage, step.detail) or step.done < last.done
        if is_new or now_s >= self._next_at:
            self._last, self._next_at = step, now_s + _PAUSE_S
            self._report(step)


class Count:
    """Reports the steps of one stage one by one."""

    def __init__(self, report: Report, stage: Stage, total: int) -> None:
        """Report the start of ``stage``, which has ``total`` steps."""
        self._report, self._stage, self._total = report, stage, total
        self._done = 0
        report(Step(stage=stage, total=total))

    def advance(self) -> None:
        """Report that another step is done."""
        self._done += 1
        self._report(Step(stage=self._stage, done=self._done, total=self._total))


def counted(items: Sequence[T], stage: Stage, report: Report) -> Iterator[T]:
    """Yield ``items``, and report each as done when the next one is asked for."""
    count = Count(report, stage, len(items))
    for item in items:
        yield item
        count.advance()
