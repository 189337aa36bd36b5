"""Answers of the API: records as JSON, and errors with their status."""

from typing import Any

from fastapi import Response

from autotune import errors
from autotune.client import json_records
from search_spaces.errors import AutotuneError, ChoiceError, MapError, SpaceError
from workers.errors import TaskError

#: Error -> status; the first entry an error is an instance of counts.
STATUSES: dict[type[AutotuneError], int] = {
    errors.TooLargeError: 413,
    errors.JobSpecError: 422,
    SpaceError: 422,
    ChoiceError: 422,
    MapError: 422,
    TaskError: 422,
    errors.NotFoundError: 404,
    errors.NoFeasibleMapError: 409,
    errors.ConflictError: 409,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.TooManyRequestsError: 429,
    errors.StoreUnavailableError: 503,
}
#: What callers should do about a status, in the words of HTTP.
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "1"}}


def answer(kind: Any, value: object, *, status: int = 200) -> Response:
    """Return the answer that holds a value of type ``kind``."""
    return Response(json_records.dump(kind, value), status, media_type="application/json")


def refusal(error: AutotuneError) -> Response:
    """Return the answer that tells an error."""
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    return problem(type(error).__name__, str(error), status)


def problem(kind: str, message: str, status: int) -> Response:
    """Return the answer that tells what is wrong."""
    content = json_records.dump(
        json_records.ErrorAnswer, json_records.ErrorAnswer(error=json_records.Problem(kind=kind, message=message))
    )
    return Response(content, status, headers=_HEADERS.get(status), media_type="application/json")
