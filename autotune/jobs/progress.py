"""How a running job reports its progress to a listener."""

from dataclasses import dataclass
from typing import Protocol

from autotune.jobs.records import TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of the job after a trial."""

    #: Trials of the search recorded so far, and their budget.
    done: int
    budget: int
    #: Seconds searched so far, and an estimate of those left; None without one.
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

    def trial(self, progress: Progress) -> None:
        """Handle a recorded trial."""
        ...


class Silent:
    """A listener that ignores everything."""

    def stage(self, text: str) -> None:
        pass

    def trial(self, progress: Progress) -> None:
        pass
