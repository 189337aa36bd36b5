"""What a job may spend: trials, seconds, and the part of them that belongs to the final measurements."""

import statistics
from collections.abc import Sequence

from autotune.job_spec import JobSpec
from autotune.store.records import TrialKind, TrialRecord

#: Final measurements of a job at most; each may reveal that another map is the better pick.
MOST_FINAL = 8
#: Final measurements that time is kept for: of as many maps as there are names to pick by.
_EXPECTED_FINAL = 4
#: Share of the time limit they may take from the search.
_FINAL_SHARE = 0.25


class Budget:
    """The limits of one job against what it has spent; seconds count over all its drivers."""

    def __init__(self, spec: JobSpec) -> None:
        self._trials, self._limit_s = spec.search.trials, spec.search.time_limit_s
        self._final_passes = spec.measurement.final_repeats / spec.measurement.repeats

    def allows_search(self, trials: Sequence[TrialRecord], pending: int, elapsed_s: float) -> bool:
        """Return whether another map may be submitted besides ``pending`` ones."""
        in_time = self._limit_s is None or elapsed_s < self._limit_s - self._reserve_s(trials)
        return in_time and searched(trials) + pending < self._trials

    def allows_final(self, trials: Sequence[TrialRecord], pending: int, elapsed_s: float) -> bool:
        """Return whether another map may be measured again besides ``pending`` ones."""
        in_time = self._limit_s is None or elapsed_s < self._limit_s
        return in_time and len(trials) - searched(trials) + pending < MOST_FINAL

    def is_spent(self, trials: Sequence[TrialRecord]) -> bool:
        """Return whether the trials of the search are all recorded."""
        return searched(trials) >= self._trials

    def remaining_s(self, trials: Sequence[TrialRecord], elapsed_s: float) -> float:
        """Return the seconds left at the pace so far, no more than the time limit allows."""
        done = searched(trials)
        by_trials = elapsed_s / done * (self._trials - done) if done else 0.0
        return max(0.0, by_trials if self._limit_s is None else min(by_trials, self._limit_s - elapsed_s))

    def _reserve_s(self, trials: Sequence[TrialRecord]) -> float:
        """Return the seconds to keep for the final measurements, as long as there is a limit."""
        assert self._limit_s is not None
        seconds = [trial.seconds for trial in trials if trial.seconds and trial.kind is not TrialKind.FINAL]
        if not seconds:
            return 0.0
        return min(_FINAL_SHARE * self._limit_s, _EXPECTED_FINAL * self._final_passes * statistics.median(seconds))


def searched(trials: Sequence[TrialRecord]) -> int:
    """Return how many trials the search itself took."""
    return sum(trial.kind is not TrialKind.FINAL for trial in trials)
