"""The client of a service's HTTP API."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import pydantic

from autotune.client import json_records
from autotune.client.follow import Update
from autotune.client.tokens import NewToken
from autotune.errors import JobSpecError, NotFoundError, StoreError, StoreUnavailableError
from autotune.jobs.records import EventRecord, FrontRecord, JobRecord, JobState, Scope, Tally, TokenRecord, TrialRecord
from autotune.jobs.spec import JobSpec
from workers.measurement import LatencySamples
from workers.setup import Probes
from workers.tasks import TaskInfo

#: Seconds without a response after which a call fails. During a stream a service sends something every few seconds.
_TIMEOUT_S = 60.0
#: First and longest pause before a retry, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
#: HTTP statuses of a service, or of a proxy in front of it, that is temporarily unavailable.
_NOT_READY = (502, 503, 504)
#: Maximum bytes of one update: a job's events and its best map.
_LARGEST_UPDATE = 1 << 26
#: Maximum number of names per query, so that the URL stays short.
_NAMES = 100

T = TypeVar("T")


class RemoteClient:
    """Reads and controls the jobs of a service."""

    def __init__(self, url: str, token: str | None = None, *, patience_s: float = 10.0) -> None:
        """Use the service at ``url``.

        Args:
            url: URL of ``autotune serve --listen`` or ``autotune api``.
            token: text printed by ``autotune token add``.
            patience_s: seconds that each call retries while the service or its database is down.

        Raises:
            JobSpecError: if the URL is not an HTTP URL, or the token cannot be a token's text.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise JobSpecError(f"the URL of a service must be http://HOST:PORT or https://HOST, but got {url!r}")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise JobSpecError("a token must be one line of ASCII; pass the text that 'autotune token add' printed")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url, self._patience_s = url, patience_s
        self._http = httpx2.Client(base_url=f"{url.rstrip('/')}/v1/", headers=headers, timeout=_TIMEOUT_S)

    def find(self, reference: str) -> JobRecord:
        return self._get(JobRecord, "find-job", reference=reference)

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        found: list[JobRecord] = []
        while limit is None or len(found) < limit:
            page = self._get(json_records.JobPage, "jobs", state=state, after=after)
            found.extend(page.jobs)
            after = page.next
            if after is None:
                break
        return found[:limit]

    def job(self, job_id: str) -> JobRecord:
        return self._get(JobRecord, _path("jobs", job_id))

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        found: list[TrialRecord] = []
        groups = [None] if numbers is None else _groups(sorted(numbers))
        for group in groups:
            position: int | None = after
            while position is not None and (limit is None or len(found) < limit):
                page = self._get(json_records.TrialPage, _path("jobs", job_id, "trials"), after=position, number=group)
                found.extend(page.trials)
                position = page.next
        if not groups:
            self.job(job_id)  # raises if there is no such job
        return found[:limit]

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        pages = [self._get(json_records.Tallies, "tallies", job=group) for group in _groups(job_ids)]
        return {job_id: tally for page in pages for job_id, tally in page.tallies.items()}

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        path = _path("jobs", job_id, "trials", str(number), "latency")
        return tuple(latency.samples() for latency in self._get(tuple[json_records.Latency, ...], path))

    def fronts(self, job_id: str) -> list[FrontRecord]:
        return self._get(list[FrontRecord], _path("jobs", job_id, "fronts"))

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        return self._get(list[EventRecord], _path("jobs", job_id, "events"), start=start)

    def probes(self, key: str) -> Probes | None:
        try:
            return self._get(Probes, _path("probes", key))
        except NotFoundError:
            return None

    def submit(self, spec: JobSpec, *, key: str | None = None, priority: int = 0) -> JobRecord:
        return self._submit("jobs", key, content=json.dumps(spec.dump()), params={"priority": priority})

    def clone(self, job_id: str, *, key: str | None = None) -> JobRecord:
        return self._submit(_path("jobs", job_id, "clone"), key)

    def pause(self, job_id: str) -> JobRecord:
        return self._ask(JobRecord, "POST", _path("jobs", job_id, "pause"))

    def cancel(self, job_id: str) -> JobRecord:
        return self._ask(JobRecord, "POST", _path("jobs", job_id, "cancel"))

    def resume(self, job_id: str) -> JobRecord:
        return self._ask(JobRecord, "POST", _path("jobs", job_id, "resume"))

    def change_plan(self, job_id: str, *, priority: int | None = None, **search: Any) -> JobRecord:
        changes = search if priority is None else {"priority": priority, **search}
        return self._ask(JobRecord, "PATCH", _path("jobs", job_id), json=changes)

    def follow(self, job_id: str, *, position: int = 0) -> Iterator[Update]:
        """See ``Client.follow``. The client reconnects a broken stream; only the progress may be reported twice."""
        patience = _Patience(self._patience_s)
        is_live = True
        while is_live:
            try:
                for update in self._stream(_path("jobs", job_id, "progress"), position):
                    patience = _Patience(self._patience_s)
                    position, is_live = update.position, update.state.is_live
                    yield update
            except (httpx2.TransportError, StoreUnavailableError) as error:
                patience.wait(self._away(error))

    def tasks(self) -> list[TaskInfo]:
        return self._get(list[TaskInfo], "tasks")

    def add_token(self, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
        """See ``Client.add_token``. Never retried, because a lost response leaves a token whose text nobody knows."""
        body = {"name": name, "scope": scope.value, "days": days}
        try:
            return _read(NewToken, self._http.post("tokens", json=body))
        except httpx2.TransportError as error:
            raise self._away(error) from None

    def tokens(self) -> list[TokenRecord]:
        return self._get(list[TokenRecord], "tokens")

    def revoke_token(self, token_id: str) -> TokenRecord:
        return self._ask(TokenRecord, "DELETE", _path("tokens", token_id))

    def close(self) -> None:
        self._http.close()

    def _submit(self, path: str, key: str | None, **request: Any) -> JobRecord:
        # A unique key makes it safe to retry a request whose response was lost.
        headers = {"Idempotency-Key": quote(key) if key is not None else secrets.token_hex(16)}
        return self._ask(JobRecord, "POST", path, headers=headers, **request)

    def _get(self, kind: type[T], path: str, **query: Any) -> T:
        return self._ask(kind, "GET", path, params={name: value for name, value in query.items() if value is not None})

    def _ask(self, kind: type[T], method: str, path: str, **request: Any) -> T:
        """Send a request, retrying while the service is unavailable, and return the response's value.

        The request must be safe to repeat.
        """
        patience = _Patience(self._patience_s)
        while True:
            try:
                return _read(kind, self._http.request(method, path, **request))
            except (httpx2.TransportError, StoreUnavailableError) as error:
                patience.wait(self._away(error))

    def _stream(self, path: str, position: int) -> Iterator[Update]:
        headers = {"Last-Event-ID": str(position)}
        with self._http.sse(path, headers=headers, max_event_size=_LARGEST_UPDATE) as source:
            if source.response.is_error:
                source.response.read()
                _read(Update, source.response)
            for event in source:
                yield json_records.load(Update, event.data)

    def _away(self, error: Exception) -> StoreUnavailableError:
        if isinstance(error, StoreUnavailableError):
            return error
        return StoreUnavailableError(
            f"the service at {self._url} cannot be reached: {str(error) or type(error).__name__}; start it with: "
            "autotune serve --listen"
        )


class _Patience:
    """The retries of one call."""

    def __init__(self, seconds: float) -> None:
        self._give_up, self._pause_s = time.monotonic() + seconds, _FIRST_PAUSE_S

    def wait(self, error: StoreUnavailableError) -> None:
        """Wait before the next attempt, or raise ``error`` if the time is up."""
        if time.monotonic() >= self._give_up:
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def _read(kind: type[T], response: httpx2.Response) -> T:
    """Return the value in a response, or raise the error in it."""
    try:
        if response.is_success:
            return json_records.load(kind, response.content)
        problem = json_records.load(json_records.ErrorAnswer, response.content).error
    except pydantic.ValidationError:
        away = response.status_code in _NOT_READY
        raise (StoreUnavailableError if away else StoreError)(
            f"{response.url} responded with status {response.status_code} and not in the format of this API version; "
            "check the URL, and that client and service have the same version"
        ) from None
    raise json_records.error_of(problem)


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _groups(names: Sequence[T]) -> list[Sequence[T]]:
    return [names[start : start + _NAMES] for start in range(0, len(names), _NAMES)]
