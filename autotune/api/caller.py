"""The caller of a route: the holder of the request's token, and the client that acts for it."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from autotune.api.guard import HOLDER, OPEN
from autotune.client.local import LocalClient
from autotune.errors import ForbiddenError
from autotune.jobs.records import JobRecord, Scope, TokenRecord
from autotune.jobs.timestamps import now
from autotune.store.base import Store

#: Version of the API: the first part of the path of every route about jobs.
PREFIX = "/v1"
#: Key of the mark in OpenAPI.
SCOPE_KEY = "x-scope"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The holder of a token, with a client that acts in the holder's name."""

    holder: TokenRecord
    client: LocalClient
    store: Store

    def is_admitted(self) -> bool:
        """Return whether the token is still valid; always true if no token is needed."""
        found = self.store.token(self.holder.id) if self.holder.id else (self.holder, "")
        return found is not None and found[0].is_valid(now())

    def own(self, job_id: str) -> JobRecord:
        """Return a job that the holder may change.

        Raises:
            NotFoundError: if there is no such job.
            ForbiddenError: if the job belongs to somebody else.
        """
        job = self.store.job(job_id)
        if job.owner != self.holder.name and not self.holder.scope.includes(Scope.ADMIN):
            raise ForbiddenError(f"job {job.id} belongs to {job.owner}; only {job.owner} and admins may change it")
        return job


def needs(scope: Scope) -> dict[str, Any]:
    """Return the OpenAPI extension that marks a route with the scope it needs."""
    return {SCOPE_KEY: scope.value}


def check_scope(request: Request) -> None:
    """Reject a token whose scope is too narrow for the route; a route without a mark is for admins.

    Raises:
        ForbiddenError: if the scope is too narrow.
    """
    if request.url.path in OPEN:
        return
    marks = getattr(request.scope["route"], "openapi_extra", None) or {}
    needed = Scope(marks.get(SCOPE_KEY, Scope.ADMIN))
    holder: TokenRecord = request.scope[HOLDER]
    if not holder.scope.includes(needed):
        raise ForbiddenError(f"this needs a token of scope {needed}, but {holder.name}'s has scope {holder.scope}")


def _session(request: Request) -> Session:
    state, holder = request.app.state, request.scope[HOLDER]
    client = LocalClient(state.store, owner=holder.name, limits=state.settings.limits)
    return Session(holder=holder, client=client, store=state.store)


async def _body(request: Request) -> bytes:
    return await request.body()


Caller = Annotated[Session, Depends(_session)]
Body = Annotated[bytes, Depends(_body)]
