"""The transitions of a job's state: pure functions that a store applies under a lock, by the database's clock.

A driver needs a lease. Each claim gets the next epoch, and a store refuses writes under an earlier one, so a
driver that was presumed dead can do no harm when it wakes up.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from autotune.errors import ConflictError, LeaseLostError
from autotune.jobs.records import EventRecord, JobRecord, JobState, Order
from search_spaces.errors import AutotuneError

#: Seconds a lease lasts, and the number of renewals in that time.
LEASE_S = 30.0
RENEWALS = 3
#: The job fails when this many drivers in a row have died without recording a trial.
MOST_CRASHES = 3


class OrderedError(AutotuneError):
    """The user paused or cancelled the job."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"the job was {order.state} by its user")
        self.order = order


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A job after a transition, and the events of the transition."""

    job: JobRecord
    events: tuple[EventRecord, ...] = ()


#: From a job and the present time to the changed job; raises if the job's state does not allow it.
Transition = Callable[[JobRecord, datetime], Change]


def is_held(job: JobRecord, at: datetime) -> bool:
    """Return whether a driver holds the job's lease."""
    return job.state is JobState.RUNNING and job.leased_until is not None and job.leased_until > at


def is_interrupted(job: JobRecord, at: datetime) -> bool:
    """Return whether the driver of a running job was lost: its lease has run out."""
    return job.state is JobState.RUNNING and not is_held(job, at)


def claimed(driver: str, lease_s: float = LEASE_S, *, recovering: bool = False) -> Transition:
    """Give the job to ``driver``, which must renew the lease within ``lease_s`` seconds.

    A driver that only recovers maps takes no job that waits to be searched, and controllers leave its job alone.
    """

    def claim(job: JobRecord, at: datetime) -> Change:
        if is_held(job, at):
            raise ConflictError(f"job {job.id} is being run by process {job.driver}; wait for it or stop it first")
        if recovering and job.state is JobState.QUEUED:
            raise ConflictError(f"job {job.id} is queued; wait until its search has ended, or pause it first")
        if job.state is JobState.RUNNING and job.order is not None:
            return _carried_out(job, job.order, at)
        kind, message = ("started", "Search started") if job.description is None else ("resumed", "Search resumed")
        if recovering:
            kind, message = "recovering", "Recovery started"
        if job.state is JobState.RUNNING:
            kind, message = "taken_over", f"Driver {job.driver} was lost; {driver} continues"
        return _changed(
            job, at, kind, message,
            state=JobState.RUNNING, driver=driver, epoch=job.epoch + 1, order=None, error=None, stage=None,
            leased_until=at + timedelta(seconds=lease_s), served=job.served and not recovering,
        )  # fmt: skip

    return claim


def with_fields(epoch: int, *events: EventRecord, **fields: Any) -> Transition:
    """Set fields of a job, and record events, under the lease of its driver."""

    def write(job: JobRecord, at: datetime) -> Change:
        check_epoch(job, epoch)
        return Change(job=dataclasses.replace(job, **fields), events=events)

    return write


def settled(epoch: int, state: JobState, message: str, *, error: str | None = None) -> Transition:
    """End the run under the driver's lease; a job cancelled meanwhile becomes cancelled, unless it is finished."""
    return _ended(epoch, state, state.value, message, error=error)


def recovery_ended(epoch: int, before: JobRecord, message: str) -> Transition:
    """End a recovery as ``settled`` ends a run: in the state ``before``, but a job whose search was lost is paused."""
    state = JobState.PAUSED if before.state.is_live else before.state
    return _ended(epoch, state, "recovery_ended", message, error=before.error, served=before.served)


def _ended(epoch: int, state: JobState, kind: str, message: str, **changes: Any) -> Transition:
    def end(job: JobRecord, at: datetime) -> Change:
        check_epoch(job, epoch)
        if job.state is not JobState.RUNNING:
            return Change(job=job)  # the driver repeats a call whose response was lost
        if job.order is Order.CANCEL and state is not JobState.FINISHED:
            return _carried_out(job, job.order, at)
        return _changed(job, at, kind, message, state=state, **changes, **_FREE)

    return end


def released(epoch: int, message: str, *, crashed: bool = False) -> Transition:
    """Put a job whose driver has ended back into the queue; nothing changes if another driver has it.

    The job fails if its drivers keep dying without recording a trial; otherwise it would be retried for ever.
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
    """Pause or cancel the job: at once if no driver holds it, otherwise at the next poll of its driver."""

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
    """Let controllers continue the job; an order that was not carried out yet is withdrawn."""
    if is_held(job, at) or job.state is JobState.QUEUED:
        return Change(job=dataclasses.replace(job, order=None, served=True))
    return _changed(job, at, "queued", "Queued to continue", state=JobState.QUEUED, error=None, served=True, **_FREE)


def replanned(*, priority: int | None = None, **search: Any) -> Transition:
    """Change a job's priority or keys of its ``search`` section, such as ``trials``, even while it runs."""

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


def check_room(owner: str, live: int, most_live: int | None) -> None:
    """Raise ``ConflictError`` if an owner with ``live`` queued and running jobs may have no more."""
    if most_live is not None and live >= most_live:
        raise ConflictError(
            f"a user may have {most_live} queued or running jobs, but {owner} has {live}; "
            "wait for some to finish, or cancel them"
        )


def check_epoch(job: JobRecord, epoch: int) -> None:
    """Check that no other driver was given the job since ``epoch``.

    Raises:
        LeaseLostError: if one was.
    """
    if job.epoch != epoch:
        raise LeaseLostError(
            f"job {job.id} was given to {job.driver} because its lease had expired; nothing was written"
        )


#: Fields of a job that no driver holds.
_FREE: dict[str, Any] = {"leased_until": None, "order": None, "stage": None}


def _carried_out(job: JobRecord, order: Order, at: datetime) -> Change:
    # The next epoch, so that a driver presumed dead cannot continue the job.
    return _changed(job, at, order.state.value, order.done, state=order.state, error=None, epoch=job.epoch + 1, **_FREE)


def _changed(job: JobRecord, at: datetime, kind: str, message: str, **changes: Any) -> Change:
    event = EventRecord(at=at, kind=kind, message=message)
    return Change(job=dataclasses.replace(job, **changes), events=(event,))
