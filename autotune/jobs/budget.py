"""The budget of a job: trials, seconds, and the share reserved for final measurements."""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence

from autotune.errors import ConflictError
from autotune.jobs.records import EventRecord, JobRecord, JobState, TrialKind, TrialRecord
from autotune.jobs.spec import JobSpec

#: Most final measurements after a search; each may reveal that another map is the better pick.
MOST_FINAL = 8
#: Final measurements that time is reserved for: one per named pick.
_EXPECTED_FINAL = 4
#: Largest share of the time limit reserved for them.
_FINAL_SHARE = 0.25
#: Share of the time limit that timing one workload of a map may take.
_TIMING_SHARE = 0.05
#: Trials that a final measurement is taken to last if it ends at a half-width instead of after all of its passes.
_FINAL_TRIALS = 2.0
#: Latest trials from which the time of one trial is estimated.
_RECENT = 32


class Budget:
    """The limits of one job and what it has spent; seconds count over all its drivers."""

    def __init__(self, spec: JobSpec, trials: Iterable[TrialRecord] = ()) -> None:
        """Start from the recorded trials of a job."""
        self.limit(spec.search.trials, spec.search.time_limit_s)
        passes = spec.measurement.final_repeats / spec.measurement.repeats
        self._final_trials = passes if spec.half_width() is None else min(passes, _FINAL_TRIALS)
        self._recent_s: deque[float] = deque(maxlen=_RECENT)
        self._finals = 0
        self._final_seconds: deque[float] = deque(maxlen=MOST_FINAL)
        #: Trials of the search itself.
        self.searched = 0
        for trial in trials:
            self.spend(trial)
        self._finals = 0  # a resumed job may have other picks

    def limit(self, trials: int, limit_s: float | None) -> None:
        """Set the trials of the search and the seconds of the whole job; None means no time limit."""
        #: Most trials of the search.
        self.trials, self._limit_s = trials, limit_s

    def spend(self, trial: TrialRecord) -> None:
        """Count one trial."""
        if trial.kind is TrialKind.FINAL:
            self._finals += 1
            if trial.seconds:
                self._final_seconds.append(trial.seconds)
        if not trial.kind.is_searched:
            return
        self.searched += 1
        if self.searched == 2:
            # The first trial is full precision, timed in every workload; it counts only until there is another.
            self._recent_s.clear()
        if trial.seconds:
            self._recent_s.append(trial.seconds)

    @property
    def trial_s(self) -> float:
        """Seconds a trial takes; infinite before one was measured."""
        return statistics.median(self._recent_s) if self._recent_s else math.inf

    @property
    def is_spent(self) -> bool:
        """Whether all trials of the search are recorded."""
        return self.searched >= self.trials

    def allows_search(self, pending: int, elapsed_s: float) -> bool:
        """Return whether another map may be submitted in addition to ``pending`` ones."""
        in_time = self._limit_s is None or elapsed_s < self._limit_s - self._reserve_s(self._limit_s)
        return in_time and self.searched + pending < self.trials

    def allows_final(self, pending: int, elapsed_s: float) -> bool:
        """Return whether another final measurement may start in addition to ``pending`` ones and end in time."""
        in_time = self._limit_s is None or elapsed_s + self._final_s < self._limit_s
        return in_time and self._finals + pending < MOST_FINAL

    def remaining_s(self, elapsed_s: float, aside_s: float = 0.0) -> float | None:
        """Return an estimate of the seconds left, final measurements included; None before the first trial.

        Args:
            elapsed_s: seconds spent.
            aside_s: seconds of them that were not spent on trials, whose pace follows from the rest.
        """
        search_s = remaining_s(self.searched, self.trials, elapsed_s - aside_s, None)
        if search_s is None:
            return None
        if self._finals:
            search_s = 0.0  # the search may have ended before its budget was spent
        finals_s = max(0, _EXPECTED_FINAL - self._finals) * self._final_s if self._recent_s else 0.0
        if self._limit_s is None:
            return search_s + finals_s
        left_s = max(0.0, self._limit_s - elapsed_s)
        return min(left_s, min(search_s, max(0.0, left_s - self._reserve_s(self._limit_s))) + finals_s)

    def share(self, elapsed_s: float) -> float:
        """Return the share of the time limit that was spent; 0 without a limit."""
        return 0.0 if self._limit_s is None else elapsed_s / self._limit_s

    def timing_s(self, elapsed_s: float, *, final: bool) -> float:
        """Return the seconds that timing one workload of a map may take; infinite without a time limit."""
        if self._limit_s is None:
            return math.inf
        return max(0.0, self._limit_s - elapsed_s) / 2.0 if final else _TIMING_SHARE * self._limit_s

    def left_s(self, elapsed_s: float) -> float:
        """Return the seconds left for the search, by its time limit and its trials; infinite if unknown."""
        by_trials = max(0, self.trials - self.searched) * self.trial_s
        if self._limit_s is None:
            return by_trials
        return min(by_trials, max(0.0, self._limit_s - self._reserve_s(self._limit_s) - elapsed_s))

    @property
    def _final_s(self) -> float:
        """Seconds that a final measurement is expected to take, by those that were made."""
        if self._final_seconds:
            return statistics.median(self._final_seconds)
        return self._final_trials * self.trial_s

    def _reserve_s(self, limit_s: float) -> float:
        """Return the seconds reserved for final measurements."""
        if not self._recent_s:
            return 0.0
        return min(_FINAL_SHARE * limit_s, _EXPECTED_FINAL * self._final_s)


def remaining_s(searched: int, trials: int, elapsed_s: float, limit_s: float | None) -> float | None:
    """Return the seconds left at the pace so far, at most those of the time limit; None before the first trial."""
    if not searched:
        return None
    by_trials = elapsed_s / searched * max(0, trials - searched)
    return max(0.0, by_trials if limit_s is None else min(by_trials, limit_s - elapsed_s))


def left_s(job: JobRecord, spec: JobSpec, done: int) -> float | None:
    """Return the seconds that a job with ``done`` trials has left: as its driver estimates them, or else at its pace.

    It is None before the first trial and once the job has ended. ``spec`` is that of the job.
    """
    if not job.state.is_live:
        return None
    if done and job.stage is not None and job.stage.remaining_s is not None:
        return job.stage.remaining_s
    return remaining_s(done, spec.search.trials, job.elapsed_s, spec.search.time_limit_s)


def check_continues(job: JobRecord, done: int, events: Sequence[EventRecord]) -> None:
    """Check that a job with ``done`` trials has something left to do.

    Raises:
        ConflictError: if it is finished, and its budget was not raised since; the message says how to raise it.
    """
    if job.state is not JobState.FINISHED:
        return
    trials, limit_s = job.spec.search.trials, job.spec.search.time_limit_s
    ended = max((i for i, event in enumerate(events) if event.kind == "finished"), default=-1)
    is_spent = done >= trials or (limit_s is not None and job.elapsed_s >= limit_s)
    if not is_spent and any(event.kind == "replanned" for event in events[ended + 1 :]):
        return
    reason = events[ended].message if ended >= 0 else "Search finished"
    more = f" --trials {2 * trials}" if done >= trials or limit_s is None else ""
    more += "" if limit_s is None else f" --time-limit {2 * limit_s:g}"
    raise ConflictError(
        f"job {job.id} has no budget left. {reason}; raise its budget first: autotune plan {job.id}{more}"
    )


def searched(trials: Iterable[TrialRecord]) -> int:
    """Return the number of trials of the search itself."""
    return sum(trial.kind.is_searched for trial in trials)
