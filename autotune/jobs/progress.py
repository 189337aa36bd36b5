"""How a running job tells whoever watches what it is doing."""

from dataclasses import dataclass
from typing import Protocol

from autotune.jobs.records import TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The job after one more trial."""

    #: Trials recorded, and the most there will be.
    done: int
    budget: int
    #: Seconds searched so far, and the most left; None without an estimate.
    elapsed_s: float
    remaining_s: float | None
    #: Best feasible trial in the job's first objective; None if none is feasible yet.
    best: TrialRecord | None
    #: Maps on the front.
    front_size: int


class Listener(Protocol):
    """Watches a running job."""

    def stage(self, text: str) -> None:
        """Learn what the job does next, such as starting workers."""
        ...

    def trial(self, progress: Progress) -> None:
        """Learn that a trial was recorded."""
        ...


class Silent:
    """A listener that says nothing."""

    def stage(self, text: str) -> None:
        pass

    def trial(self, progress: Progress) -> None:
        pass
