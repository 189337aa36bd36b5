"""What a job may spend: trials, seconds, and the part of them that belongs to the final measurements."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

from autotune.jobs.records import TrialKind, TrialRecord
from autotune.jobs.spec import JobSpec

#: Final measurements after a search at most; each may reveal that another map is the better pick.
MOST_FINAL = 8
#: Final measurements that time is kept for: of as many maps as there are names to pick by.
_EXPECTED_FINAL = 4
#: Share of the time limit they may take from the search.
_FINAL_SHARE = 0.25
#: Trials that say how long one takes.
_RECENT = 32


class Budget:
    """The limits of one job against what it has spent; seconds count over all its drivers."""

    def __init__(self, spec: JobSpec, trials: Iterable[TrialRecord] = ()) -> None:
        """Start with what a job has recorded."""
        self.limit(spec.search.trials, spec.search.time_limit_s)
        self._final_passes = spec.measurement.final_repeats / spec.measurement.repeats
        self._recent_s: deque[float] = deque(maxlen=_RECENT)
        self._finals = 0
        #: Trials the search itself took.
        self.searched = 0
        for trial in trials:
            self.spend(trial)
        self._finals = 0  # a job that goes on may have other picks

    def limit(self, trials: int, limit_s: float | None) -> None:
        """Set the trials the search may take, and the seconds for everything; None is without a limit."""
        #: Trials the search may take.
        self.trials, self._limit_s = trials, limit_s

    def spend(self, trial: TrialRecord) -> None:
        """Count one more trial."""
        if trial.kind is TrialKind.FINAL:
            self._finals += 1
            return
        self.searched += 1
        if trial.seconds:
            self._recent_s.append(trial.seconds)

    @property
    def trial_s(self) -> float:
        """Return the seconds a trial takes, infinite before one was measured."""
        return statistics.median(self._recent_s) if self._recent_s else math.inf

    @property
    def is_spent(self) -> bool:
        """Return whether the trials of the search are all recorded."""
        return self.searched >= self.trials

    def allows_search(self, pending: int, elapsed_s: float) -> bool:
        """Return whether another map may be submitted besides ``pending`` ones."""
        in_time = self._limit_s is None or elapsed_s < self._limit_s - self._reserve_s(self._limit_s)
        return in_time and self.searched + pending < self.trials

    def allows_final(self, pending: int, elapsed_s: float) -> bool:
        """Return whether another map may be measured again besides ``pending`` ones, and will be in time."""
        in_time = self._limit_s is None or elapsed_s + self._final_s < self._limit_s
        return in_time and self._finals + pending < MOST_FINAL

    def remaining_s(self, elapsed_s: float) -> float | None:
        """Return what ``remaining_s`` says of this budget."""
        return remaining_s(self.searched, self.trials, elapsed_s, self._limit_s)

    @property
    def _final_s(self) -> float:
        return self._final_passes * self.trial_s

    def _reserve_s(self, limit_s: float) -> float:
        """Return the seconds to keep for the final measurements."""
        if not self._recent_s:
            return 0.0
        return min(_FINAL_SHARE * limit_s, _EXPECTED_FINAL * self._final_s)


def remaining_s(searched: int, trials: int, elapsed_s: float, limit_s: float | None) -> float | None:
    """Return the seconds left at the pace so far, no more than the time limit allows; None before any trial."""
    if not searched:
        return None
    by_trials = elapsed_s / searched * max(0, trials - searched)
    return max(0.0, by_trials if limit_s is None else min(by_trials, limit_s - elapsed_s))


def searched(trials: Iterable[TrialRecord]) -> int:
    """Return how many trials the search itself took."""
    return sum(trial.kind is not TrialKind.FINAL for trial in trials)
