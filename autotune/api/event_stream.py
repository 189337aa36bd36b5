"""The route that streams a job's updates as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from autotune.api.caller import PREFIX, Caller, Session, needs
from autotune.api.read_routes import JobId
from autotune.client import json_records
from autotune.client.follow import LOOK_S, Update, Watcher
from autotune.errors import JobSpecError, StoreUnavailableError
from autotune.jobs.records import Scope

router = APIRouter(prefix=PREFIX)

#: Seconds of silence after which an empty comment is sent, so that nobody considers the connection dead.
_SILENCE_S = 10.0
#: Seconds after which a stream ends, so that the client must reconnect.
_LONGEST_S = 900.0


@router.get(
    "/jobs/{job_id}/progress",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "One ``Update`` per event; the event's name is its kind",
        }
    },
    openapi_extra=needs(Scope.VIEWER),
)
async def follow(
    request: Request,
    caller: Caller,
    job_id: JobId,
    last: Annotated[str, Header(alias="Last-Event-ID", description="Id of the last event received.")] = "0",
) -> StreamingResponse:
    """Send a job's updates as server-sent events, until it is no longer queued or running or the token is invalid."""
    if not (last.isascii() and last.isdecimal() and int(last) < 2**31):
        raise JobSpecError(f"Last-Event-ID must be the id of an event, but got {last[:20]!r}")
    watcher = Watcher(caller.store, job_id, position=int(last))
    first = await run_in_threadpool(watcher.look)
    assert first is not None
    return StreamingResponse(_events(request, caller, watcher, first), media_type="text/event-stream")


async def _events(request: Request, caller: Session, watcher: Watcher, update: Update | None) -> AsyncIterator[bytes]:
    started = sent = time.monotonic()
    while True:
        if update is not None:
            data = json_records.dump(Update, update)
            yield b"event: %s\nid: %d\ndata: %s\n\n" % (update.kind.encode(), update.position, data)
            sent = time.monotonic()
        elif time.monotonic() - sent > _SILENCE_S:
            yield b":\n\n"
            sent = time.monotonic()
        is_over = request.app.state.stopping.is_set() or time.monotonic() - started > _LONGEST_S
        if is_over or not watcher.is_live:
            return
        await asyncio.sleep(LOOK_S)
        try:
            if not await run_in_threadpool(caller.is_admitted):
                return
            update = await run_in_threadpool(watcher.look)
        except StoreUnavailableError:
            update = None  # keep the connection: the database may be available at the next poll
