"""Middleware in front of every route: checks hosts, tokens and body sizes, sets headers and counts requests."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autotune.api.metrics import Metrics
from autotune.api.responses import refusal
from autotune.api.settings import ApiSettings
from autotune.client import tokens
from autotune.errors import (
    ForbiddenError,
    JobSpecError,
    TooLargeError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from autotune.jobs import records
from autotune.jobs.records import TokenRecord
from autotune.jobs.spec import MAX_BYTES
from autotune.jobs.timestamps import now
from autotune.store.base import TokenStore
from search_spaces.errors import AutotuneError

#: The only paths that need no token: the health checks, and the description of the API, which is no secret.
OPEN = ("/healthz", "/readyz", "/docs", "/v1/openapi.json")
#: Key of the ASGI scope under which the guard stores the request's token record.
HOLDER = "autotune.holder"

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Passes admitted requests on to the routes."""

    def __init__(self, app: ASGIApp, *, store: TokenStore, settings: ApiSettings, metrics: Metrics) -> None:
        self._app, self._store, self._settings, self._metrics = app, store, settings, metrics
        self._failures = _Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, seconds = time.monotonic(), 500, 0.0

        async def answer(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                # Measured until the response starts, because a stream lasts as long as its job.
                status, seconds = message["status"], time.monotonic() - started
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._admit(scope)
            await self._app(scope, _capped(receive), answer)
        except AutotuneError as error:
            await refusal(error)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.count(scope["method"], route, status, seconds)

    async def _admit(self, scope: MutableMapping[str, Any]) -> None:
        if scope["path"] in OPEN:
            return
        headers = Headers(scope=scope)
        self._check_host(headers)
        if b"%00" in scope["raw_path"] + scope["query_string"]:
            raise JobSpecError("a URL must not contain NUL characters, because databases reject them")
        length = headers.get("Content-Length", "0")
        if len(length) > len(str(MAX_BYTES)) or (length.isdecimal() and int(length) > MAX_BYTES):
            raise _too_large()
        if not self._settings.authentication:
            scope[HOLDER] = TokenRecord(id="", name="local", scope=records.Scope.ADMIN, created_at=now())
            return
        address = (scope.get("client") or ("unknown",))[0]
        try:
            scope[HOLDER] = await self._holder(headers)
        except UnauthenticatedError:
            self._failures.count(address)
            raise

    async def _holder(self, headers: Headers) -> TokenRecord:
        kind, _, text = headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            raise UnauthenticatedError(
                "a token is needed; set AUTOTUNE_TOKEN, or send it as the header 'Authorization: Bearer TOKEN'; "
                "/docs describes the API without one"
            )
        return await run_in_threadpool(tokens.holder, self._store, text.strip())

    def _check_host(self, headers: Headers) -> None:
        """Reject foreign host names and origins, with which other web pages could make a browser call this service."""
        named = {"Host": f"//{headers.get('Host', '')}", "Origin": headers.get("Origin", "//localhost")}
        for header, url in named.items():
            if _host(url) not in self._settings.hosts:
                raise ForbiddenError(
                    f"this service does not accept {header} {headers.get(header, '')!r}; "
                    "if it should, start it with --host-name"
                )


class _Failures:
    """Counts recent requests with invalid tokens per client address. Requests with valid tokens are never limited."""

    _MOST, _WINDOW_S, _ADDRESSES = 20, 60.0, 10_000

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def count(self, address: str) -> None:
        """Count one failure.

        Raises:
            TooManyRequestsError: if there were too many.
        """
        if len(self._times) >= self._ADDRESSES:
            self._times.clear()
        at = time.monotonic()
        times = self._times.setdefault(address, deque(maxlen=self._MOST))
        if len(times) == self._MOST and at - times[0] < self._WINDOW_S:
            raise TooManyRequestsError("too many requests without a valid token; wait a minute")
        times.append(at)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _capped(receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return ``receive`` with a limit on the body's size, whatever its header claims."""
    read = 0

    async def receive_some() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BYTES:
            raise _too_large()
        return message

    return receive_some


def _too_large() -> TooLargeError:
    return TooLargeError(f"a request must have at most {MAX_BYTES} bytes, but this one has more")
