"""Follow a job by polling its records, for people and programs that wait for it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.errors import JobFailedError
from autotune.jobs.budget import left_s
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.progress import Progress
from autotune.jobs.records import EventRecord, JobRecord, JobStage, JobState, Order, TrialKind, TrialRecord, TrialState
from autotune.metrics.catalog import decisive_ratio
from autotune.metrics.objectives import Objectives
from autotune.store.base import ReadStore

#: Seconds between polls of a job.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialNews:
    """A recorded trial in short."""

    number: int
    kind: TrialKind
    label: str | None
    state: TrialState
    #: Whether everything was measured and every constraint holds.
    feasible: bool
    #: Whether it was on the front when this was sent; later trials may beat it.
    on_front: bool
    #: Metric name -> value, of the job's objectives and limits and of the latency ratio, as far as measured.
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What has changed about a job since the previous update."""

    state: JobState
    #: Why the job failed; None unless it did.
    error: str | None
    progress: Progress
    events: tuple[EventRecord, ...]
    #: Number of events reported so far; a follower that lost its connection continues from there.
    position: int
    #: What its driver is doing; None if no driver has told.
    stage: JobStage | None = None
    #: Trials recorded since the previous update; the first update of a follower has all.
    trials: tuple[TrialNews, ...] = ()

    @property
    def kind(self) -> str:
        """The most important change: ``state`` with the events of the job, ``trial``, or ``stage``."""
        return "state" if self.events else "trial" if self.trials else "stage"


class Watcher:
    """Polls one job."""

    def __init__(self, store: ReadStore, job_id: str, *, position: int = 0) -> None:
        """Watch a job; its first ``position`` events are already known."""
        self._store, self._job_id, self._position = store, job_id, position
        self._version = -1
        self._stage: JobStage | None = None
        self._front: tuple[int, ...] = ()
        self._best: TrialRecord | None = None
        #: Numbers of the trials told, and the number up to which all are.
        self._told: set[int] = set()
        self._all_told = -1
        #: Whether the job was queued or running at the last poll.
        self.is_live = True

    def look(self) -> Update | None:
        """Poll the job; return an update, or None if nothing has changed. The first poll always returns an update.

        Raises:
            NotFoundError: if there is no such job.
        """
        job = self._store.job(self._job_id)
        self.is_live = job.state.is_live
        if (job.version, job.stage) == (self._version, self._stage):
            return None
        events = self._store.events(job.id, start=self._position)
        self._version, self._stage, self._position = job.version, job.stage, self._position + len(events)
        progress = self._progress(job)
        return Update(
            state=job.state,
            error=job.error,
            progress=progress,
            trials=self._new_trials(job),
            events=tuple(events),
            position=self._position,
            stage=job.stage,
        )

    def _new_trials(self, job: JobRecord) -> tuple[TrialNews, ...]:
        # Workers may finish trials in another order than they began them.
        trials = self._store.trials(job.id, after=self._all_told)
        new = [trial for trial in trials if trial.number not in self._told]
        self._told.update(trial.number for trial in new)
        while self._all_told + 1 in self._told:
            self._all_told += 1
        spec = job.spec
        names = dict.fromkeys((*spec.metrics(), decisive_ratio(spec.objectives).name))
        return tuple(
            TrialNews(
                number=trial.number,
                kind=trial.kind,
                label=trial.label,
                state=trial.state,
                feasible=trial.feasible,
                on_front=trial.number in self._front,
                figures={name: trial.figures[name].value for name in names if name in trial.figures},
            )
            for trial in new
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
            remaining_s=left_s(job, job.spec, tally.searched),
            best=self._best,
            front_size=len(tally.front),
        )


def follow(store: ReadStore, job_id: str, *, position: int = 0) -> Iterator[Update]:
    """Yield updates of a job until it is no longer queued or running.

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
    """Check that a followed job has finished.

    Raises:
        JobFailedError: if it failed.
        OrderedError: if a user paused or cancelled it.
    """
    if update.state is JobState.FAILED:
        raise JobFailedError(f"the job failed: {update.error}")
    for order in Order:
        if update.state is order.state:
            raise OrderedError(order)
