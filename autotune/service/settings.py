"""How a controller works; plain data that its children get too."""

from dataclasses import dataclass

from autotune.jobs.lifecycle import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What ``autotune serve`` was told."""

    #: URL of the database.
    database: str
    #: Jobs that run at the same time at most.
    jobs: int = 4
    #: Address of the Ray cluster that all jobs share; None starts one on this machine.
    ray_address: str | None = None
    #: A Python file that registers tasks; it runs in every child and every worker.
    task_file: str | None = None
    #: Seconds a lease lasts. All controllers of a database must agree on it.
    lease_s: float = LEASE_S
    #: Seconds between two looks at the queue.
    poll_s: float = 1.0
    #: Whether logs are JSON, one object a line.
    json_logs: bool = False
