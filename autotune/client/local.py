"""The client on a database that this process opens itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autotune.client import actions, follow, tokens
from autotune.client.follow import Update
from autotune.client.results import JobResults
from autotune.client.tokens import NewToken
from autotune.errors import FieldError, JobSpecError
from autotune.jobs.records import JobRecord, Scope, TokenRecord
from autotune.jobs.spec import JobFile, JobSpec
from autotune.store.base import ReadStore, Store
from search_spaces.errors import unknown
from workers.tasks import TaskInfo, list_tasks, task_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits per user; None means no limit."""

    #: Queued and running jobs.
    live_jobs: int | None = None
    #: Trials per job.
    trials: int | None = None
    #: Whether jobs may name tasks that this process does not know, because its workers may know them.
    unknown_tasks: bool = True


class LocalClient(JobResults):
    """Reads and controls the jobs in a store."""

    def __init__(self, store: Store, *, owner: str = "local", limits: Limits | None = None) -> None:
        """Use ``store`` on behalf of ``owner``."""
        self._store, self._owner, self._limits = store, owner, limits or Limits()

    @property
    def records(self) -> ReadStore:
        return self._store

    def find(self, reference: str) -> JobRecord:
        return actions.find_job(self._store, reference)

    def submit(self, job: JobFile, *, key: str | None = None, priority: int = 0) -> JobRecord:
        spec = JobSpec.of(job)
        self._check_task(spec.task.name)
        self._check_trials(spec.search.trials)
        most_live = self._limits.live_jobs
        return actions.submit(self._store, spec, key=key, priority=priority, owner=self._owner, most_live=most_live)

    def clone(self, job_id: str, *, key: str | None = None) -> JobRecord:
        job = self._store.job(job_id)
        self._check_task(job.task)
        self._check_trials(job.spec.search.trials)
        return actions.clone(self._store, job, key=key, owner=self._owner, most_live=self._limits.live_jobs)

    def pause(self, job_id: str) -> JobRecord:
        return actions.pause(self._store, job_id)

    def cancel(self, job_id: str) -> JobRecord:
        return actions.cancel(self._store, job_id)

    def resume(self, job_id: str) -> JobRecord:
        return actions.resume(self._store, job_id, most_live=self._limits.live_jobs)

    def change_plan(self, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
        self._check_trials(search.get("trials", 0))
        return actions.change_plan(self._store, job_id, priority=priority, **search)

    def follow(self, job_id: str, *, position: int = 0) -> Iterator[Update]:
        return follow.follow(self._store, job_id, position=position)

    def tasks(self) -> list[TaskInfo]:
        return list_tasks()

    def add_token(self, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
        return tokens.add_token(self._store, name, scope=scope, days=days)

    def tokens(self) -> list[TokenRecord]:
        return self._store.tokens()

    def revoke_token(self, token_id: str) -> TokenRecord:
        return self._store.revoke_token(token_id)

    def close(self) -> None:
        self._store.close()

    def _check_task(self, name: str) -> None:
        known = task_names()
        if not self._limits.unknown_tasks and name not in known:
            raise JobSpecError.of(FieldError(path="task.name", message=unknown("task", name, known)))

    def _check_trials(self, trials: object) -> None:
        most = self._limits.trials
        if most is not None and isinstance(trials, int) and trials > most:
            message = f"must be at most {most} in this service, but got {trials}"
            raise JobSpecError.of(FieldError(path="search.trials", message=message))
