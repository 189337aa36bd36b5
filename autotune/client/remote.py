"""The client of a service's HTTP API."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from autotune.client import json_records
from autotune.client.follow import Update
from autotune.client.http_service import HttpService, path_of
from autotune.client.results import JobResults
from autotune.client.tokens import NewToken
from autotune.errors import NotFoundError
from autotune.jobs.records import EventRecord, FrontRecord, JobRecord, JobState, Scope, Tally, TokenRecord, TrialRecord
from autotune.jobs.spec import JobFile, JobSpec
from autotune.store.artifacts import unchanged
from autotune.store.base import ReadStore
from workers.measurement import LatencySamples
from workers.setup import Probes
from workers.tasks import TaskInfo

#: Maximum number of names per query, so that the URL stays short.
_NAMES = 100

T = TypeVar("T")


class RemoteRecords:
    """The records of a service."""

    def __init__(self, service: HttpService) -> None:
        """Read from ``service``."""
        self._service = service

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        found: list[JobRecord] = []
        while limit is None or len(found) < limit:
            page = self._service.get(json_records.JobPage, "jobs", state=state, after=after)
            found.extend(page.jobs)
            after = page.next
            if after is None:
                break
        return found[:limit]

    def job(self, job_id: str) -> JobRecord:
        return self._service.get(JobRecord, path_of("jobs", job_id))

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        found: list[TrialRecord] = []
        path = path_of("jobs", job_id, "trials")
        groups = [None] if numbers is None else _groups(sorted(numbers))
        for group in groups:
            position: int | None = after
            while position is not None and (limit is None or len(found) < limit):
                page = self._service.get(json_records.TrialPage, path, after=position, number=group)
                found.extend(page.trials)
                position = page.next
        if not groups:
            self.job(job_id)  # raises if there is no such job
        return found[:limit]

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        pages = [self._service.get(json_records.Tallies, "tallies", job=group) for group in _groups(job_ids)]
        return {job_id: tally for page in pages for job_id, tally in page.tallies.items()}

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        path = path_of("jobs", job_id, "trials", str(number), "latency")
        return tuple(latency.samples() for latency in self._service.get(tuple[json_records.Latency, ...], path))

    def fronts(self, job_id: str) -> list[FrontRecord]:
        return self._service.get(list[FrontRecord], path_of("jobs", job_id, "fronts"))

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        return self._service.get(list[EventRecord], path_of("jobs", job_id, "events"), start=start)

    def probes(self, key: str) -> Probes | None:
        try:
            return self._service.get(Probes, path_of("probes", key))
        except NotFoundError:
            return None

    def artifact(self, sha256: str) -> bytes:
        return unchanged(sha256, self._service.get_bytes(path_of("artifacts", sha256)))

    def close(self) -> None:
        self._service.close()


class RemoteClient(JobResults):
    """Reads and controls the jobs of a service."""

    def __init__(self, url: str, token: str | None = None, *, patience_s: float = 10.0) -> None:
        """Use the service at ``url``; see ``HttpService``."""
        self._service = HttpService(url, token, patience_s=patience_s)
        self.records: ReadStore = RemoteRecords(self._service)

    def find(self, reference: str) -> JobRecord:
        return self._service.get(JobRecord, "find-job", reference=reference)

    def submit(self, job: JobFile, *, key: str | None = None, priority: int = 0) -> JobRecord:
        return self._submit("jobs", key, content=json.dumps(JobSpec.of(job).dump()), params={"priority": priority})

    def clone(self, job_id: str, *, key: str | None = None) -> JobRecord:
        return self._submit(path_of("jobs", job_id, "clone"), key)

    def pause(self, job_id: str) -> JobRecord:
        return self._service.ask(JobRecord, "POST", path_of("jobs", job_id, "pause"))

    def cancel(self, job_id: str) -> JobRecord:
        return self._service.ask(JobRecord, "POST", path_of("jobs", job_id, "cancel"))

    def resume(self, job_id: str) -> JobRecord:
        return self._service.ask(JobRecord, "POST", path_of("jobs", job_id, "resume"))

    def change_plan(self, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
        changes = search if priority is None else {"priority": priority, **search}
        return self._service.ask(JobRecord, "PATCH", path_of("jobs", job_id), json=changes)

    def follow(self, job_id: str, *, position: int = 0) -> Iterator[Update]:
        return self._service.updates(path_of("jobs", job_id, "progress"), position)

    def tasks(self) -> list[TaskInfo]:
        return self._service.get(list[TaskInfo], "tasks")

    def add_token(self, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
        # Never retried: a lost response leaves a token whose text nobody knows.
        body = {"name": name, "scope": scope.value, "days": days}
        return self._service.ask_once(NewToken, "POST", "tokens", json=body)

    def tokens(self) -> list[TokenRecord]:
        return self._service.get(list[TokenRecord], "tokens")

    def revoke_token(self, token_id: str) -> TokenRecord:
        return self._service.ask(TokenRecord, "DELETE", path_of("tokens", token_id))

    def close(self) -> None:
        self._service.close()

    def _submit(self, path: str, key: str | None, **request: Any) -> JobRecord:
        # A unique key makes it safe to retry a request whose response was lost.
        headers = {"Idempotency-Key": quote(key) if key is not None else secrets.token_hex(16)}
        return self._service.ask(JobRecord, "POST", path, headers=headers, **request)


def _groups(names: Sequence[T]) -> list[Sequence[T]]:
    return [names[start : start + _NAMES] for start in range(0, len(names), _NAMES)]
