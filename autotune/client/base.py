"""The ``Client`` seam: read jobs, submit them and steer them, wherever they are recorded."""

from collections.abc import Iterator
from typing import Any, Protocol

from autotune.client.follow import Update
from autotune.client.tokens import NewToken
from autotune.jobs.records import JobRecord, Scope, TokenRecord
from autotune.jobs.spec import JobSpec
from autotune.store.base import ReadStore
from workers.tasks import TaskInfo


class Client(Protocol):
    """What users do with jobs; records are equal wherever they come from.

    Every method may raise ``StoreError``; a remote one also ``AccessError``, if the token does not allow the call.
    """

    @property
    def records(self) -> ReadStore:
        """Everything that is recorded."""
        ...

    def find(self, reference: str) -> JobRecord:
        """Return the job with that id, start of an id, or name; ``last`` is the newest. See ``jobs.find_job``."""
        ...

    def submit(self, spec: JobSpec, *, key: str | None = None, priority: int = 0) -> JobRecord:
        """Queue a new job; the same key and job return the job queued first. See ``jobs.submit``."""
        ...

    def clone(self, job_id: str, *, key: str | None = None) -> JobRecord:
        """Submit a job again as a new one."""
        ...

    def pause(self, job_id: str) -> JobRecord:
        """Stop a job for now. See ``jobs.pause``."""
        ...

    def cancel(self, job_id: str) -> JobRecord:
        """Give a job up; what it found is kept. See ``jobs.cancel``."""
        ...

    def resume(self, job_id: str) -> JobRecord:
        """Queue a job to go on."""
        ...

    def change_plan(self, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
        """Change a job's priority, or keys of its ``search`` section. See ``jobs.change_plan``."""
        ...

    def follow(self, job_id: str, *, position: int = 0) -> Iterator[Update]:
        """Yield what is new about a job until it neither waits nor runs; its first events may be left out."""
        ...

    def tasks(self) -> list[TaskInfo]:
        """Return the registered tasks, by name."""
        ...

    def add_token(self, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
        """Make an access token. See ``access.add_token``."""
        ...

    def tokens(self) -> list[TokenRecord]:
        """Return all access tokens, oldest first."""
        ...

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Make an access token invalid from now on."""
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
