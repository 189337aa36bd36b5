"""Settings of a controller, as plain data; its children get them too."""

from dataclasses import dataclass

from autotune.jobs.lifecycle import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Options of ``autotune serve``."""

    #: URL of the database.
    database: str
    #: Maximum number of jobs that run at the same time.
    jobs: int = 4
    #: Address of the Ray cluster that all jobs share; None starts one on this machine.
    ray_address: str | None = None
    #: A Python file that registers tasks; it runs in every child and every worker.
    task_file: str | None = None
    #: Seconds a lease lasts. All controllers of a database must agree on it.
    lease_s: float = LEASE_S
    #: Seconds between polls of the queue.
    poll_s: float = 1.0
    #: Whether to log JSON, one object per line.
    json_logs: bool = False
