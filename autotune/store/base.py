"""The ``Store`` seam. Records go in and out by value; what a call returns is already durable."""

from typing import Any, Protocol

from autotune.store.records import EventRecord, FrontRecord, JobRecord, TrialRecord, TrialResult
from workers.measurement import LatencySamples
from workers.setup import Probes


class ReadStore(Protocol):
    """What dashboards and reports need."""

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, newest first."""
        ...

    def job(self, job_id: str) -> JobRecord:
        """Return one job.

        Raises:
            NotFoundError: if there is none.
        """
        ...

    def trials(self, job_id: str) -> list[TrialRecord]:
        """Return a job's trials by ascending number, choices included."""
        ...

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        """Return a trial's raw latencies, by batch size in the order of the job; empty if there are none."""
        ...

    def fronts(self, job_id: str) -> list[FrontRecord]:
        """Return every revision of a job's front, oldest first; the last one is current."""
        ...

    def events(self, job_id: str) -> list[EventRecord]:
        """Return a job's events, oldest first."""
        ...

    def probes(self, key: str) -> Probes | None:
        """Return the probes recorded under ``key``, None if there are none."""
        ...


class Store(ReadStore, Protocol):
    """What the driver needs besides. Every method is one transaction."""

    def create_job(self, job: JobRecord) -> None:
        """Record a new job.

        Raises:
            ConflictError: if its id is taken.
        """
        ...

    def update_job(self, job_id: str, *, event: EventRecord | None = None, **changes: Any) -> JobRecord:
        """Change fields of a job, record the event, and return the job as it is now.

        The fields are ``state``, ``spec``, ``description``, ``error`` and ``driver``.

        Raises:
            NotFoundError: if there is no such job.
        """
        ...

    def record(self, result: TrialResult) -> None:
        """Commit a finished trial with everything that belongs to it, all or nothing.

        Recording the same trial number again changes nothing.

        Raises:
            NotFoundError: if there is no such job.
            ConflictError: if another trial of the job has the same map.
        """
        ...

    def record_probes(self, key: str, probes: Probes) -> None:
        """Keep probes for every job they serve; the first ones recorded under a key stay."""
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
