"""Submit jobs and find them again: what the command line, the dashboard and Python share."""

import secrets
from collections.abc import Sequence

from autotune.errors import ConflictError, NotFoundError
from autotune.job_spec import JobSpec
from autotune.store.base import ReadStore, Store
from autotune.store.clock import now
from autotune.store.records import JobRecord, JobState, TrialRecord


def submit(store: Store, spec: JobSpec) -> JobRecord:
    """Record a new job and return it; nothing runs yet."""
    at = now()
    job = JobRecord(
        id=secrets.token_hex(4),
        name=spec.name,
        task=spec.task.name,
        spec=spec.dump(),
        state=JobState.CREATED,
        created_at=at,
        updated_at=at,
    )
    store.create_job(job)
    return job


def find_job(store: ReadStore, reference: str) -> JobRecord:
    """Return the job with that id, that start of an id, or that name; ``last`` is the newest job.

    A name several jobs share means the newest of them.

    Raises:
        NotFoundError: if there is none.
        ConflictError: if several ids start so.
    """
    jobs = store.jobs()
    if reference == "last" and jobs:
        return jobs[0]
    by_id = [job for job in jobs if job.id == reference] or [job for job in jobs if job.id.startswith(reference)]
    by_name = [job for job in jobs if job.name == reference]
    if len(by_id) > 1 and not by_name:
        raise ConflictError(f"several jobs start with {reference!r}: {', '.join(job.id for job in by_id)}; give more")
    found = by_name or by_id
    if not found or not reference:
        known = ", ".join(f"{job.id} ({job.name})" for job in jobs[:10]) or "none"
        raise NotFoundError(f"no job {reference!r} in this database. Newest jobs: {known}")
    return found[0]


def find_trial(trials: Sequence[TrialRecord], number: int) -> TrialRecord:
    """Return the trial with that number.

    Raises:
        NotFoundError: if there is none.
    """
    for trial in trials:
        if trial.number == number:
            return trial
    raise NotFoundError(f"no trial {number}; the job has {len(trials)} trials, see 'autotune front'")
