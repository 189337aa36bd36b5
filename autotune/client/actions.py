"""Submit, control and find jobs: the functions shared by the command line, the API and the dashboard."""

import hashlib
import json
import secrets
from contextlib import suppress
from typing import Any

from autotune.errors import ConflictError, FieldError, JobSpecError, NotFoundError
from autotune.jobs import lifecycle
from autotune.jobs.budget import check_continues
from autotune.jobs.records import JobRecord, JobState, Order, Submission
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.store.base import JobStore, ReadStore

#: Maximum number of characters of a submission's key, as stored in the database.
_LONGEST_KEY = 255
#: Largest absolute value of a priority.
_HIGHEST_PRIORITY = 1000


def submit(
    store: JobStore,
    spec: JobSpec,
    *,
    served: bool = True,
    key: str | None = None,
    priority: int = 0,
    owner: str = "local",
    most_live: int | None = None,
) -> JobRecord:
    """Record a new job and return it; it does not run yet.

    Args:
        store: records the job.
        spec: the content of the job file.
        served: whether any controller may drive the job, or only this process.
        key: makes retries safe: submitting the same job with the same key again returns the job recorded first.
        priority: jobs with higher priority start first.
        owner: the user who submits the job.
        most_live: maximum number of the owner's queued and running jobs; None for no limit.

    Raises:
        ConflictError: if the key was used for another job, or the owner has too many jobs.
        JobSpecError: if the key is empty, too long or not one line, or the priority is out of range.
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
    store: JobStore, job: JobRecord, *, key: str | None = None, owner: str = "local", most_live: int | None = None
) -> JobRecord:
    """Submit a copy of the job as a new job; see ``submit``."""
    return submit(store, job.spec, key=key, priority=job.priority, owner=owner, most_live=most_live)


def pause(store: JobStore, job_id: str) -> JobRecord:
    """Pause the job. A running driver stops at its next poll.

    Raises:
        ConflictError: if the job has ended or is being cancelled.
    """
    return store.change_job(job_id, lifecycle.ordered(Order.PAUSE))


def cancel(store: JobStore, job_id: str) -> JobRecord:
    """Cancel the job; its results are kept. A running driver stops at its next poll.

    Raises:
        ConflictError: if the job has finished.
    """
    return store.change_job(job_id, lifecycle.ordered(Order.CANCEL))


def resume(store: JobStore, job_id: str, *, most_live: int | None = None) -> JobRecord:
    """Queue the job for controllers to continue; a queued or running job stays unchanged.

    Raises:
        ConflictError: if the job has no budget left, or the owner already has ``most_live`` queued or running jobs.
    """
    check_resumable(store, store.job(job_id))
    return store.change_job(job_id, lifecycle.requeued, most_live=most_live)


def check_resumable(store: ReadStore, job: JobRecord) -> None:
    """Check that the job has something left to do; see ``budget.check_continues``."""
    check_continues(job, store.tallies([job.id])[job.id].searched, store.events(job.id))


def change_plan(store: JobStore, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
    """Change the job's priority, or keys of its ``search`` section such as ``trials`` and ``time_limit_s``.

    Raises:
        JobSpecError: if the changes would make the job file invalid, or the priority is out of range.
    """
    _check_priority(priority or 0)
    return store.change_job(job_id, lifecycle.replanned(priority=priority, **search))


def find_job(store: ReadStore, reference: str) -> JobRecord:
    """Return the job with the given id, start of an id, or name; ``last`` is the newest job.

    If several jobs share a name, the newest is returned.

    Raises:
        NotFoundError: if no job matches.
        ConflictError: if several ids start with ``reference``.
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
        ids = ", ".join(job.id for job in by_id)
        raise ConflictError(f"several job ids start with {reference!r}: {ids}; give more characters")
    found = by_name or by_id
    if not found or not reference:
        known = ", ".join(f"{job.id} ({job.name})" for job in jobs[:10]) or "none"
        raise NotFoundError(f"no job {reference!r} in this database. Newest jobs: {known}")
    return found[0]


def _check_priority(priority: int) -> None:
    if abs(priority) > _HIGHEST_PRIORITY:
        message = f"must be from -{_HIGHEST_PRIORITY} to {_HIGHEST_PRIORITY}, but got {priority}"
        raise JobSpecError.of(FieldError(path="priority", message=message))
