"""Submit jobs, steer them and find them again: what the command line, the API and the dashboard share."""

import hashlib
import json
import secrets
from contextlib import suppress
from typing import Any

from autotune.errors import ConflictError, JobSpecError, NotFoundError
from autotune.jobs import lifecycle
from autotune.jobs.records import JobRecord, JobState, Order, Submission
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.store.base import ReadStore, Store

#: Characters of the key of a submission at most, as the database keeps it.
_LONGEST_KEY = 255
#: Priorities go from minus this to this.
_HIGHEST_PRIORITY = 1000


def submit(
    store: Store,
    spec: JobSpec,
    *,
    served: bool = True,
    key: str | None = None,
    priority: int = 0,
    owner: str = "local",
    most_live: int | None = None,
) -> JobRecord:
    """Record a new job and return it; nothing runs yet.

    Args:
        store: where it is recorded.
        spec: what is to be done.
        served: whether any controller may drive it, or only this process.
        key: makes submitting again harmless: the same key and job return the job recorded first.
        priority: jobs of higher priority are started first.
        owner: who submits it.
        most_live: jobs its owner may have that wait or run; None is without a limit.

    Raises:
        ConflictError: if the key was used for another job, or its owner has too many jobs.
        JobSpecError: if the key is empty, long or not one line, or the priority is out of range.
    """
    _check_priority(priority)
    if key is not None and not (key.isprintable() and 1 <= len(key) <= _LONGEST_KEY):
        raise JobSpecError(f"a key must be one line of 1 to {_LONGEST_KEY} characters, but got {key[:80]!r}")
    at = now()
    job = JobRecord(
        id=secrets.token_hex(4),
        name=spec.name,
        task=spec.task.name,
        document=spec.dump(),
        state=JobState.QUEUED,
        created_at=at,
        updated_at=at,
        owner=owner,
        priority=priority,
        served=served,
    )
    request = json.dumps([job.document, priority], sort_keys=True)
    submission = Submission(key=key, request_hash=hashlib.sha256(request.encode()).hexdigest()) if key else None
    return store.create_job(job, submission, most_live=most_live)


def clone(
    store: Store, job: JobRecord, *, key: str | None = None, owner: str = "local", most_live: int | None = None
) -> JobRecord:
    """Submit the job again as a new one; see ``submit``."""
    return submit(store, job.spec, key=key, priority=job.priority, owner=owner, most_live=most_live)


def pause(store: Store, job_id: str) -> JobRecord:
    """Stop the job for now; if a driver has it, as soon as that looks.

    Raises:
        ConflictError: if it has ended or is being cancelled.
    """
    return store.change_job(job_id, lifecycle.ordered(Order.PAUSE))


def cancel(store: Store, job_id: str) -> JobRecord:
    """Give the job up; what it found is kept. If a driver has it, that happens as soon as the driver looks.

    Raises:
        ConflictError: if it has finished.
    """
    return store.change_job(job_id, lifecycle.ordered(Order.CANCEL))


def resume(store: Store, job_id: str, *, most_live: int | None = None) -> JobRecord:
    """Queue the job for controllers to go on with; one that waits or runs already stays as it is.

    Raises:
        ConflictError: if its owner has ``most_live`` jobs already that wait or run.
    """
    return store.change_job(job_id, lifecycle.requeued, most_live=most_live)


def change_plan(store: Store, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
    """Change the job's priority, or keys of its ``search`` section such as ``trials`` and ``time_limit_s``.

    Raises:
        JobSpecError: if the job file would not be valid with them, or the priority is out of range.
    """
    _check_priority(priority or 0)
    return store.change_job(job_id, lifecycle.replanned(priority=priority, **search))


def find_job(store: ReadStore, reference: str) -> JobRecord:
    """Return the job with that id, that start of an id, or that name; ``last`` is the newest job.

    A name several jobs share means the newest of them.

    Raises:
        NotFoundError: if there is none.
        ConflictError: if several ids start so.
    """
    if reference == "last":
        newest = store.jobs(limit=1)
        if newest:
            return newest[0]
    with suppress(NotFoundError):
        return store.job(reference)
    jobs = store.jobs()
    by_id = [job for job in jobs if job.id.startswith(reference)]
    by_name = [job for job in jobs if job.name == reference]
    if len(by_id) > 1 and not by_name:
        raise ConflictError(f"several jobs start with {reference!r}: {', '.join(job.id for job in by_id)}; give more")
    found = by_name or by_id
    if not found or not reference:
        known = ", ".join(f"{job.id} ({job.name})" for job in jobs[:10]) or "none"
        raise NotFoundError(f"no job {reference!r} in this database. Newest jobs: {known}")
    return found[0]


def _check_priority(priority: int) -> None:
    if abs(priority) > _HIGHEST_PRIORITY:
        raise JobSpecError(f"priority: must be from -{_HIGHEST_PRIORITY} to {_HIGHEST_PRIORITY}, but got {priority}")
