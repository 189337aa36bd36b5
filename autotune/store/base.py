"""The ``Store`` seam. Records go in and out by value; what a call returns is already durable.

A database that is down for a moment is waited for, as long as the store was told to be patient; then a call
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
    """What dashboards and reports need."""

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Return jobs, newest first.

        Args:
            state: leaves out jobs in other states.
            after: id of a job; it and newer ones are left out.
            limit: jobs at most.

        Raises:
            NotFoundError: if there is no job ``after``.
        """
        ...

    def job(self, job_id: str) -> JobRecord:
        """Return one job.

        Raises:
            NotFoundError: if there is none.
        """
        ...

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        """Return a job's trials by ascending number, choices included.

        Args:
            job_id: the job.
            numbers: leaves out other trials.
            after: leaves out this number and lower ones.
            limit: trials at most.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        """Return how far jobs have come, by id; unknown ids have a tally of nothing."""
        ...

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        """Return a trial's raw latencies, by batch size in the order of the job; empty if there are none."""
        ...

    def fronts(self, job_id: str) -> list[FrontRecord]:
        """Return every revision of a job's front, oldest first; the last one is current."""
        ...

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        """Return a job's events, oldest first, without the first ``start`` ones."""
        ...

    def probes(self, key: str) -> Probes | None:
        """Return the probes recorded under ``key``, None if there are none."""
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


class WatchStore(ReadStore, Protocol):
    """What those need besides who look again and again: light reads that tell what is new."""

    def versions(self) -> Mapping[str, int]:
        """Return the version of every job by id, newest job first."""
        ...

    def numbers(self, job_id: str) -> list[int]:
        """Return the numbers of a job's trials, ascending; one may be recorded after a higher one.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...


class JobStore(ReadStore, Protocol):
    """Storage for users' actions on jobs. Every method is one transaction."""

    def create_job(
        self, job: JobRecord, submission: Submission | None = None, *, most_live: int | None = None
    ) -> JobRecord:
        """Record a new job and return it; or the job that was submitted under the same key before.

        Args:
            job: the new job.
            submission: names the request, so that sending it again makes no second job.
            most_live: jobs its owner may have that wait or run; None is without a limit.

        Raises:
            ConflictError: if its id is taken, its key stands for another request, or its owner has too many jobs.
        """
        ...

    def change_job(self, job_id: str, transition: Transition, *, most_live: int | None = None) -> JobRecord:
        """Apply a transition to a job that nobody else changes meanwhile, and return the job as it is now.

        Args:
            job_id: the job.
            transition: what changes of it.
            most_live: jobs its owner may have that wait or run, if this one does not yet; None is without a limit.

        Raises:
            NotFoundError: if there is no such job.
            ConflictError: if its owner has too many jobs.
            AutotuneError: what the transition raises; then nothing is changed.
        """
        ...


class DriverStore(JobStore, Protocol):
    """Storage for the driver of a job. Every method is one transaction."""

    def directions(self, job_id: str, *, epoch: int) -> Directions:
        """Return what the driver of a job has to know.

        Raises:
            LeaseLostError: if another driver has the job.
            NotFoundError: if there is no such job.
        """
        ...

    def renew(self, job_id: str, *, epoch: int, lease_s: float) -> None:
        """Let a driver's lease run for ``lease_s`` seconds from now.

        Raises:
            LeaseLostError: if another driver has the job.
            NotFoundError: if there is no such job.
        """
        ...

    def held_jobs(self) -> list[HeldJob]:
        """Return the served jobs that drivers hold: higher priority first, then older."""
        ...

    def record(self, results: Sequence[TrialResult], *, epoch: int) -> None:
        """Commit finished trials of one job with everything that belongs to them, all or nothing.

        Recording the same trial number again changes nothing.

        Raises:
            NotFoundError: if there is no such job.
            LeaseLostError: if another driver has the job.
            ConflictError: if another trial of the job has the same map.
        """
        ...

    def record_probes(self, key: str, probes: Probes) -> None:
        """Keep probes for every job they serve; the first ones recorded under a key stay."""
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
        """Return a token and the hash of its secret, None if there is none."""
        ...

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Make a token invalid from now on; one that is revoked already stays as it is.

        Raises:
            NotFoundError: if there is none.
        """
        ...


class Store(WatchStore, DriverStore, TokenStore, Protocol):
    """Storage for a whole service."""

    def claim_next(self, transition: Transition) -> JobRecord | None:
        """Apply a transition to the served job that should be driven next; None if none waits.

        These are the queued ones, and the running ones whose lease ran out: higher priority first, then older.
        """
        ...

    def statistics(self) -> Statistics:
        """Return figures over all jobs."""
        ...
