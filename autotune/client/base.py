"""The ``Client`` protocol: read, submit and control jobs, in a database or through a service."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from autotune.client.follow import Update
from autotune.client.tokens import NewToken
from autotune.jobs.records import JobRecord, Scope, TokenRecord, TrialRecord
from autotune.jobs.spec import JobFile
from autotune.store.base import ReadStore
from workers.tasks import TaskInfo


class Client(Protocol):
    """A user's operations on jobs; local and remote clients return equal records.

    Every method may raise ``StoreError``. A remote client may also raise ``AccessError`` if the token does not allow
    the call.
    """

    @property
    def records(self) -> ReadStore:
        """Everything that is recorded."""
        ...

    def find(self, reference: str) -> JobRecord:
        """Return the job with an id, start of an id, or name; ``last`` is the newest. See ``actions.find_job``."""
        ...

    def submit(self, job: JobFile, *, key: str | None = None, priority: int = 0) -> JobRecord:
        """Queue a new job; a retry with the same key and job returns the first one. See ``actions.submit``.

        ``job`` is the path of a job file, its content as a mapping, or a ``JobSpec``.
        """
        ...

    def clone(self, job_id: str, *, key: str | None = None) -> JobRecord:
        """Submit a copy of a job as a new job."""
        ...

    def pause(self, job_id: str) -> JobRecord:
        """Pause a job. See ``actions.pause``."""
        ...

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job; its results are kept. See ``actions.cancel``."""
        ...

    def resume(self, job_id: str) -> JobRecord:
        """Queue a job to continue."""
        ...

    def change_plan(self, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
        """Change a job's priority, or keys of its ``search`` section. See ``actions.change_plan``."""
        ...

    def follow(self, job_id: str, *, position: int = 0) -> Iterator[Update]:
        """Yield updates of a job until it is no longer queued or running, without its first ``position`` events."""
        ...

    def wait(self, reference: str) -> JobRecord:
        """Wait until a job has finished, and return it.

        Raises:
            JobFailedError: if it failed.
            OrderedError: if a user paused or cancelled it.
        """
        ...

    def front(self, reference: str) -> list[TrialRecord]:
        """Return the maps on a job's front by ascending value of its first objective; none if no map is feasible."""
        ...

    def export(self, reference: str, path: str | PathLike[str] = "map.json", *, choose: str | None = None) -> Path:
        """Write one map of a job to a file that ``autotune.load_map`` reads, and return its path.

        The learned weights of a recovered map go into another file beside it.

        ``choose`` is a pick or the number of a trial; None is the fastest map within the job's limits, or the knee if
        it has none.

        Raises:
            NoFeasibleMapError: if no map satisfies the constraints.
        """
        ...

    def tasks(self) -> list[TaskInfo]:
        """Return the registered tasks, by name."""
        ...

    def add_token(self, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
        """Create an access token. See ``tokens.add_token``."""
        ...

    def tokens(self) -> list[TokenRecord]:
        """Return all access tokens, oldest first."""
        ...

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Revoke an access token with immediate effect."""
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
