"""How a job's state changes: pure functions, which a store applies under a lock and by the database's clock.

A job is driven under a lease. Whoever claims it gets the next epoch, and a store refuses what is written under
an earlier one, so a driver that was given up for dead can wake up and do no harm.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from autotune.errors import ConflictError, LeaseLostError
from autotune.jobs.records import EventRecord, JobRecord, JobState, Order
from search_spaces.errors import AutotuneError

#: Seconds a lease lasts, and how often in that time it is renewed.
LEASE_S = 30.0
RENEWALS = 3
#: Drivers in a row that may die without recording a trial.
MOST_CRASHES = 3


class OrderedError(AutotuneError):
    """The job's user wants it paused or cancelled."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"the job was {order.state} by its user")
        self.order = order


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A job as it is after a transition, and what happened to it."""

    job: JobRecord
    events: tuple[EventRecord, ...] = ()


#: From a job and the present time to the changed job; raises if the job's state does not allow it.
Transition = Callable[[JobRecord, datetime], Change]


def is_held(job: JobRecord, at: datetime) -> bool:
    """Return whether a driver holds the job's lease."""
    return job.state is JobState.RUNNING and job.leased_until is not None and job.leased_until > at


def claimed(driver: str, lease_s: float = LEASE_S) -> Transition:
    """Give the job to ``driver``, who must renew the lease within ``lease_s`` seconds."""

    def claim(job: JobRecord, at: datetime) -> Change:
        if is_held(job, at):
            raise ConflictError(f"job {job.id} is being run by process {job.driver}; wait for it or stop it first")
        if job.state is JobState.RUNNING and job.order is not None:
            return _carried_out(job, job.order, at)
        kind, message = ("started", "Search started") if job.description is None else ("resumed", "Search resumed")
        if job.state is JobState.RUNNING:
            kind, message = "taken_over", f"Driver {job.driver} was lost; {driver} goes on"
        return _changed(
            job, at, kind, message,
            state=JobState.RUNNING, driver=driver, epoch=job.epoch + 1, order=None, error=None,
            leased_until=at + timedelta(seconds=lease_s),
        )  # fmt: skip

    return claim


def held(epoch: int, *events: EventRecord, **changes: Any) -> Transition:
    """Change fields of a job by the driver that holds it."""

    def write(job: JobRecord, at: datetime) -> Change:
        check_epoch(job, epoch)
        return Change(job=dataclasses.replace(job, **changes), events=events)

    return write


def settled(epoch: int, state: JobState, message: str, *, error: str | None = None) -> Transition:
    """End the job's run by the driver that holds it; one that was cancelled meanwhile is, unless it is finished."""

    def settle(job: JobRecord, at: datetime) -> Change:
        check_epoch(job, epoch)
        if job.state is not JobState.RUNNING:
            return Change(job=job)  # a call whose answer was lost is made again
        if job.order is Order.CANCEL and state is not JobState.FINISHED:
            return _carried_out(job, job.order, at)
        return _changed(job, at, state.value, message, state=state, error=error, **_FREE)

    return settle


def released(epoch: int, message: str, *, crashed: bool = False) -> Transition:
    """Put a job whose driver has ended back into the queue; nothing changes if another driver has it.

    A job whose drivers die again and again without recording a trial fails, or it would do so for ever.
    """

    def release(job: JobRecord, at: datetime) -> Change:
        if job.epoch != epoch or job.state is not JobState.RUNNING:
            return Change(job=job)
        if job.order is not None:
            return _carried_out(job, job.order, at)
        crashes = job.crashes + crashed
        if crashes >= MOST_CRASHES:
            error = f"its driver died {crashes} times in a row without recording a trial; the last time: {message}"
            return _changed(job, at, "failed", error, state=JobState.FAILED, error=error, crashes=0, **_FREE)
        return _changed(job, at, "released", message, state=JobState.QUEUED, crashes=crashes, **_FREE)

    return release


def ordered(order: Order) -> Transition:
    """Pause or cancel the job: at once if nobody holds it, else by the driver, who looks every second."""

    def ask(job: JobRecord, at: datetime) -> Change:
        if job.state is order.state:
            return Change(job=job)
        if order is Order.PAUSE and job.order is Order.CANCEL:
            raise ConflictError(f"job {job.id} is being cancelled, so it cannot be paused")
        if is_held(job, at):
            return Change(job=dataclasses.replace(job, order=order))
        endable = (JobState.QUEUED, JobState.RUNNING)
        if job.state not in (endable if order is Order.PAUSE else (*endable, JobState.PAUSED, JobState.FAILED)):
            raise ConflictError(f"job {job.id} is {job.state} already, so it cannot be {order.state}")
        return _carried_out(job, order, at)

    return ask


def requeued(job: JobRecord, at: datetime) -> Change:
    """Let controllers go on with the job; an order that was not carried out yet is taken back."""
    if is_held(job, at) or job.state is JobState.QUEUED:
        return Change(job=dataclasses.replace(job, order=None, served=True))
    return _changed(job, at, "queued", "Queued to go on", state=JobState.QUEUED, error=None, served=True, **_FREE)


def replanned(*, priority: int | None = None, **search: Any) -> Transition:
    """Change a job's priority or keys of its ``search`` section, such as ``trials``, also while it runs."""

    def plan(job: JobRecord, at: datetime) -> Change:
        spec = job.spec.with_search(f"job {job.id}", **search)
        rank = job.priority if priority is None else priority
        changed = dataclasses.replace(job, document=spec.dump(), priority=rank)
        if changed == job:
            return Change(job=job)
        limit = "" if spec.search.time_limit_s is None else f" in {spec.search.time_limit_s:g} s"
        message = f"Budget {spec.search.trials} trials{limit}, priority {changed.priority}"
        return Change(job=changed, events=(EventRecord(at=at, kind="replanned", message=message),))

    return plan


def check_epoch(job: JobRecord, epoch: int) -> None:
    """Raise ``LeaseLostError`` if the job was given to another driver since ``epoch``."""
    if job.epoch != epoch:
        raise LeaseLostError(f"job {job.id} was given to {job.driver}, as its lease had run out; nothing was written")


#: What a job is like that no driver holds.
_FREE: dict[str, Any] = {"leased_until": None, "order": None}


def _carried_out(job: JobRecord, order: Order, at: datetime) -> Change:
    # The next epoch, so that a driver thought dead cannot go on with it.
    return _changed(job, at, order.state.value, order.done, state=order.state, error=None, epoch=job.epoch + 1, **_FREE)


def _changed(job: JobRecord, at: datetime, kind: str, message: str, **changes: Any) -> Change:
    event = EventRecord(at=at, kind=kind, message=message)
    return Change(job=dataclasses.replace(job, **changes), events=(event,))
