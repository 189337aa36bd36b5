"""The ``Store`` protocol. Records are passed by value, and changes are durable when a call returns.

While a database is unavailable, a call retries for as long as the store's patience lasts; then it
raises ``StoreUnavailableError``.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from autotune.jobs.lifecycle import Transition
from autotune.jobs.records import (
    Directions,
    EventRecord,
    FrontRecord,
    HeldJob,
    JobRecord,
    JobStage,
    JobState,
    Statistics,
    Submission,
    Tally,
    TokenRecord,
    TrialRecord,
    TrialResult,
)
from workers.measurement import LatencySamples
from workers.setup import Probes


class ReadStore(Protocol):
    """Reads for dashboards and reports."""

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Return jobs, newest first.

        Args:
            state: return only jobs in this state.
            after: id of a job; return only jobs older than it.
            limit: maximum number of jobs.

        Raises:
            NotFoundError: if there is no job ``after``.
        """
        ...

    def job(self, job_id: str) -> JobRecord:
        """Return one job.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        """Return a job's trials by ascending number, choices included.

        Args:
            job_id: the job.
            numbers: return only trials with these numbers.
            after: return only trials with higher numbers.
            limit: maximum number of trials.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        """Return the jobs' progress by id; unknown ids have an empty tally."""
        ...

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        """Return a trial's raw latencies per workload and batch size, in measurement order; empty if there are none.

        Those of a recovered map are its parent's.
        """
        ...

    def fronts(self, job_id: str) -> list[FrontRecord]:
        """Return every revision of a job's front, oldest first; the last one is current."""
        ...

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        """Return a job's events, oldest first, without the first ``start`` ones."""
        ...

    def probes(self, key: str) -> Probes | None:
        """Return the probes recorded under ``key``, or None if there are none."""
        ...

    def artifact(self, sha256: str) -> bytes:
        """Return the bytes of the artifact with a sha256, in hexadecimal.

        Raises:
            NotFoundError: if there is no such artifact.
            StoreError: if its bytes were changed after they were recorded.
        """
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


class WatchStore(ReadStore, Protocol):
    """Cheap additional reads for pollers, which show what has changed."""

    def versions(self) -> Mapping[str, int]:
        """Return the version of every job by id, newest job first."""
        ...

    def stages(self) -> Mapping[str, JobStage]:
        """Return the stage of every running job whose driver has told one, by the job's id."""
        ...

    def numbers(self, job_id: str) -> list[int]:
        """Return the numbers of a job's trials, ascending; a lower number may be recorded after a higher one.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...


class JobStore(ReadStore, Protocol):
    """Storage for users' actions on jobs. Every method is one transaction."""

    def create_job(
        self, job: JobRecord, submission: Submission | None = None, *, most_live: int | None = None
    ) -> JobRecord:
        """Record a new job and return it, or return the job submitted earlier under the same key.

        Args:
            job: the new job.
            submission: identifies the request, so that a retry creates no second job.
            most_live: maximum number of the owner's queued and running jobs; None for no limit.

        Raises:
            ConflictError: if the id is taken, the key was used for another request, or the owner has too many jobs.
        """
        ...

    def change_job(self, job_id: str, transition: Transition, *, most_live: int | None = None) -> JobRecord:
        """Apply a transition to a job atomically, and return the changed job.

        Args:
            job_id: the job.
            transition: computes the change.
            most_live: maximum number of the owner's queued and running jobs, checked if this job is neither; None for
                no limit.

        Raises:
            NotFoundError: if there is no such job.
            ConflictError: if its owner has too many jobs.
            AutotuneError: any error of the transition; then nothing changes.
        """
        ...


class DriverStore(JobStore, Protocol):
    """Storage for the driver of a job. Every method is one transaction."""

    def directions(self, job_id: str, *, epoch: int) -> Directions:
        """Return the user's orders and the budget for the driver of a job.

        Raises:
            LeaseLostError: if another driver holds the job.
            NotFoundError: if there is no such job.
        """
        ...

    def renew(self, job_id: str, *, epoch: int, lease_s: float) -> None:
        """Extend a driver's lease to ``lease_s`` seconds from now.

        Raises:
            LeaseLostError: if another driver holds the job.
            NotFoundError: if there is no such job.
        """
        ...

    def record_stage(self, job_id: str, stage: JobStage, *, epoch: int) -> None:
        """Record what the driver of a job is doing; a job that it has just settled stays as it is.

        Raises:
            LeaseLostError: if another driver holds the job.
            NotFoundError: if there is no such job.
        """
        ...

    def held_jobs(self) -> list[HeldJob]:
        """Return the served jobs that drivers hold: higher priority first, then older."""
        ...

    def record(self, results: Sequence[TrialResult], *, epoch: int) -> None:
        """Commit finished trials of one job with everything that belongs to them, all or nothing.

        Recording the same trial number again changes nothing, and an artifact that is recorded already stays.

        Raises:
            NotFoundError: if there is no such job.
            LeaseLostError: if another driver holds the job.
            ConflictError: if another trial of the job has the same map.
            TooLargeError: if an artifact has too many bytes.
            StoreError: if the hash of an artifact is not that of its bytes, or a recovered map lacks its artifact.
        """
        ...

    def record_probes(self, key: str, probes: Probes) -> None:
        """Record probes under a key, unless the key already has probes; several jobs may share a key."""
        ...


class TokenStore(Protocol):
    """Storage for access tokens."""

    def add_token(self, token: TokenRecord, secret_hash: str) -> None:
        """Record a token with the hash of its secret.

        Raises:
            ConflictError: if its id is taken.
        """
        ...

    def tokens(self) -> list[TokenRecord]:
        """Return all tokens, oldest first."""
        ...

    def token(self, token_id: str) -> tuple[TokenRecord, str] | None:
        """Return a token and the hash of its secret, or None if there is no such token."""
        ...

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Revoke a token with immediate effect; a revoked token stays unchanged.

        Raises:
            NotFoundError: if there is no such token.
        """
        ...


class Store(WatchStore, DriverStore, TokenStore, Protocol):
    """Storage for a whole service."""

    def claim_next(self, transition: Transition) -> JobRecord | None:
        """Apply a transition to the served job to drive next, and return the job; None if none waits.

        Candidates are queued jobs and running jobs with an expired lease: higher priority first, then older.
        """
        ...

    def statistics(self) -> Statistics:
        """Return statistics over all jobs."""
        ...
