"""The recorded trials and the remaining budget of a job; every trial is committed here."""

import dataclasses
import logging
import time
from collections.abc import Sequence

from autotune.jobs.budget import Budget
from autotune.jobs.front import LiveFront
from autotune.jobs.progress import Listener, Progress
from autotune.jobs.records import FrontRecord, JobRecord, TrialRecord, TrialResult
from autotune.metrics.objectives import Objectives
from autotune.store.base import DriverStore

_log = logging.getLogger(__name__)


class Ledger:
    """The trials, the front, the budget and the time of one job under one lease."""

    def __init__(self, store: DriverStore, job: JobRecord, listener: Listener, *, loading_s: float = 0.0) -> None:
        """Start from the recorded trials.

        Args:
            store: where trials are committed.
            job: the job as this driver claimed it.
            listener: is notified of each commit.
            loading_s: seconds that this driver's workers took to get ready.
        """
        self._store, self._job, self._listener = store, job, listener
        trials, fronts = store.trials(job.id), store.fronts(job.id)
        #: The front, and the trials it was computed from.
        self.front = LiveFront(trials, job.spec.objectives, fronts[-1] if fronts else None)
        #: The budget of the job.
        self.budget = Budget(job.spec, trials)
        self._number = max((trial.number for trial in trials), default=-1)
        self._elapsed_s, self._committed_at = job.elapsed_s, time.monotonic() - loading_s
        #: Seconds that were not spent on trials: part of the time limit, but not of the pace of trials.
        self._aside_s = loading_s

    def next_number(self) -> int:
        """Return the number of the next trial."""
        self._number += 1
        return self._number

    def allows_search(self, pending: int) -> bool:
        """Return whether the budget allows another map in addition to ``pending`` ones."""
        return self.budget.allows_search(pending, self._spent_s())

    def allows_final(self, pending: int) -> bool:
        """Return whether the budget allows another final measurement in addition to ``pending`` ones."""
        return self.budget.allows_final(pending, self._spent_s())

    def set_aside(self, seconds: float, *, waited_s: float) -> None:
        """Count seconds since the last commit that were not spent on trials, such as those of probing.

        Args:
            seconds: all of them.
            waited_s: those of them that were spent waiting for the device, which do not count.
        """
        self._aside_s += seconds - waited_s
        self._committed_at += waited_s

    @property
    def share(self) -> float:
        """Share of the time limit that was spent; 0 without a limit."""
        return self.budget.share(self._spent_s())

    def timing_s(self, *, final: bool) -> float:
        """Return the seconds that timing one workload of the next map may take; infinite without a time limit."""
        return self.budget.timing_s(self._spent_s(), final=final)

    @property
    def left_s(self) -> float:
        """Seconds that the search may still take, infinite if unknown."""
        return self.budget.left_s(self._spent_s())

    def commit(self, results: Sequence[TrialResult], *, waited_s: float = 0.0) -> None:
        """Record trials, each with the front after it. Nothing else records trials.

        Args:
            results: the trials.
            waited_s: seconds since the last commit that do not count, such as those spent waiting for the device.
        """
        if not results:
            return
        complete = [dataclasses.replace(result, front=self._add(result.trial)) for result in results]
        now_s = time.monotonic()
        elapsed_s = max(0.0, now_s - self._committed_at - waited_s)
        complete[-1] = dataclasses.replace(complete[-1], elapsed_s=elapsed_s)
        self._store.record(complete, epoch=self._job.epoch)
        for result in complete:
            message = f": {result.trial.message}" if result.trial.message else ""
            _log.info("%s%s", result.trial.state, message, extra={"trial": result.trial.number})
        self._elapsed_s, self._committed_at = self._elapsed_s + elapsed_s, now_s
        self._listener.trial(self._progress())

    def _add(self, trial: TrialRecord) -> FrontRecord | None:
        self.budget.spend(trial)
        return self.front.add(trial)

    def _spent_s(self) -> float:
        return self._elapsed_s + time.monotonic() - self._committed_at

    def _progress(self) -> Progress:
        values = Objectives.named(self._job.spec.objectives).values
        return Progress(
            done=self.budget.searched,
            budget=self.budget.trials,
            elapsed_s=self._elapsed_s,
            remaining_s=self.budget.remaining_s(self._elapsed_s, self._aside_s),
            best=min(self.front.members, key=lambda trial: values(trial.figures)[0], default=None),
            front_size=len(self.front.members),
        )
