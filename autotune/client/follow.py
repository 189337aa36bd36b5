"""What is new about a job, from what is recorded; for people and programs that wait for it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.errors import JobFailedError
from autotune.jobs.budget import remaining_s
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.progress import Progress
from autotune.jobs.records import EventRecord, JobRecord, JobState, Order, TrialRecord
from autotune.metrics.objectives import Objectives
from autotune.store.base import ReadStore

#: Seconds between two looks at a job.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What is new about a job since the update before."""

    state: JobState
    #: Why it failed; None unless it did.
    error: str | None
    progress: Progress
    events: tuple[EventRecord, ...]
    #: Events told so far; whoever was cut off goes on from there.
    position: int


class Watcher:
    """Looks at one job again and again."""

    def __init__(self, store: ReadStore, job_id: str, *, position: int = 0) -> None:
        """Watch a job; its first ``position`` events are known already."""
        self._store, self._job_id, self._position = store, job_id, position
        self._version = -1
        self._front: tuple[int, ...] = ()
        self._best: TrialRecord | None = None
        #: Whether the job waited or ran when it was last looked at.
        self.is_live = True

    def look(self) -> Update | None:
        """Return what is new, None if nothing is. The first look always has something to tell.

        Raises:
            NotFoundError: if there is no such job.
        """
        job = self._store.job(self._job_id)
        self.is_live = job.state.is_live
        if job.version == self._version:
            return None
        events = self._store.events(job.id, start=self._position)
        self._version, self._position = job.version, self._position + len(events)
        return Update(
            state=job.state,
            error=job.error,
            progress=self._progress(job),
            events=tuple(events),
            position=self._position,
        )

    def _progress(self, job: JobRecord) -> Progress:
        tally = self._store.tallies([job.id])[job.id]
        if tally.front != self._front:
            values = Objectives.named(job.spec.objectives).values
            members = self._store.trials(job.id, numbers=tally.front)
            self._best = min(members, key=lambda trial: values(trial.figures)[0], default=None)
            self._front = tally.front
        search = job.spec.search
        return Progress(
            done=tally.searched,
            budget=search.trials,
            elapsed_s=job.elapsed_s,
            remaining_s=remaining_s(tally.searched, search.trials, job.elapsed_s, search.time_limit_s),
            best=self._best,
            front_size=len(tally.front),
        )


def follow(store: ReadStore, job_id: str, *, position: int = 0) -> Iterator[Update]:
    """Yield what is new about a job, until it neither waits nor runs.

    Raises:
        NotFoundError: if there is no such job.
    """
    watcher = Watcher(store, job_id, position=position)
    while True:
        update = watcher.look()
        if update is not None:
            yield update
        if not watcher.is_live:
            return
        time.sleep(LOOK_S)


def check_outcome(update: Update) -> None:
    """Return if a job that was watched has finished.

    Raises:
        JobFailedError, OrderedError: if it ended otherwise.
    """
    if update.state is JobState.FAILED:
        raise JobFailedError(f"the job failed: {update.error}")
    for order in Order:
        if update.state is order.state:
            raise OrderedError(order)
