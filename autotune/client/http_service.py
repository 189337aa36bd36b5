"""Requests to a service's HTTP API, retried while the service is unavailable."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import pydantic

from autotune.client import json_records
from autotune.client.follow import Update
from autotune.errors import JobSpecError, StoreError, StoreUnavailableError

#: Seconds without a response after which a call fails. During a stream a service sends something every few seconds.
_TIMEOUT_S = 60.0
#: First and longest pause before a retry, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
#: HTTP statuses of a service, or of a proxy in front of it, that is temporarily unavailable.
_NOT_READY = (502, 503, 504)
#: Maximum bytes of one update: a job's events and its best map.
_LARGEST_UPDATE = 1 << 26

T = TypeVar("T")


class HttpService:
    """A connection to a service."""

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

    def get(self, kind: type[T], path: str, **query: Any) -> T:
        """Return what is at ``path``, as a value of type ``kind``."""
        return self.ask(kind, "GET", path, params={name: value for name, value in query.items() if value is not None})

    def get_bytes(self, path: str) -> bytes:
        """Return the file at ``path``."""
        return self._repeated(lambda: _checked(self._http.get(path)).content)

    def ask(self, kind: type[T], method: str, path: str, **request: Any) -> T:
        """Send a request that is safe to repeat; retry while the service is unavailable."""
        return self._repeated(lambda: _read(kind, self._http.request(method, path, **request)))

    def ask_once(self, kind: type[T], method: str, path: str, **request: Any) -> T:
        """Send a request that must not be repeated, and return the response's value.

        Raises:
            StoreUnavailableError: if the service is unavailable; it may have received the request.
        """
        try:
            return _read(kind, self._http.request(method, path, **request))
        except httpx2.TransportError as error:
            raise self.away(error) from None

    def updates(self, path: str, position: int) -> Iterator[Update]:
        """Yield the updates of a job that still changes; reconnect when the stream breaks."""
        patience = _Patience(self._patience_s)
        is_live = True
        while is_live:
            try:
                for update in self._stream(path, position):
                    patience = _Patience(self._patience_s)
                    position, is_live = update.position, update.state.is_live
                    yield update
            except (httpx2.TransportError, StoreUnavailableError) as error:
                patience.wait(self.away(error))

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._http.close()

    def _stream(self, path: str, position: int) -> Iterator[Update]:
        headers = {"Last-Event-ID": str(position)}
        with self._http.sse(path, headers=headers, max_event_size=_LARGEST_UPDATE) as source:
            if source.response.is_error:
                source.response.read()
                _read(Update, source.response)
            for event in source:
                yield json_records.load(Update, event.data)

    def _repeated(self, ask: Callable[[], T]) -> T:
        """Send a request that is safe to repeat; retry while the service is unavailable."""
        patience = _Patience(self._patience_s)
        while True:
            try:
                return ask()
            except (httpx2.TransportError, StoreUnavailableError) as error:
                patience.wait(self.away(error))

    def away(self, error: Exception) -> StoreUnavailableError:
        """Return the error for an unavailable service."""
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
    return _parsed(kind, _checked(response))


def _checked(response: httpx2.Response) -> httpx2.Response:
    """Return a response without an error, or raise the error in it."""
    if response.is_success:
        return response
    raise json_records.error_of(_parsed(json_records.ErrorAnswer, response).error)


def _parsed(kind: type[T], response: httpx2.Response) -> T:
    try:
        return json_records.load(kind, response.content)
    except pydantic.ValidationError:
        away = response.status_code in _NOT_READY
        raise (StoreUnavailableError if away else StoreError)(
            f"{response.url} responded with status {response.status_code} and not in the format of this API version; "
            "check the URL, and that client and service have the same version"
        ) from None


def path_of(*parts: str) -> str:
    """Return a path of the API."""
    return "/".join(quote(part, safe="") for part in parts)
