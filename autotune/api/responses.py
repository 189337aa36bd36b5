"""Responses of the API: records as JSON, and errors with their HTTP status."""

from typing import Any

from fastapi import Response

from autotune import errors
from autotune.client import json_records
from search_spaces.errors import AutotuneError, ChoiceError, MapError, SpaceError
from workers.errors import TaskError

#: Error class -> HTTP status; the first entry that an error is an instance of applies.
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
    errors.MethodNotAllowedError: 405,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.TooManyRequestsError: 429,
    errors.StoreUnavailableError: 503,
}
#: HTTP status -> headers that tell callers how to proceed.
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "1"}}


class Bytes(Response):
    """A file."""

    media_type = "application/octet-stream"


def answer(kind: Any, value: object, *, status: int = 200) -> Response:
    """Return the response with a value of type ``kind`` as JSON."""
    return Response(json_records.dump(kind, value), status, media_type="application/json")


def refusal(error: AutotuneError) -> Response:
    """Return the response for an error."""
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    return _response(json_records.Problem.of(error), status)


def problem(kind: str, message: str, status: int) -> Response:
    """Return an error response of the given kind, message and status."""
    return _response(json_records.Problem(kind=kind, message=message), status)


def _response(found: json_records.Problem, status: int) -> Response:
    content = json_records.dump(json_records.ErrorAnswer, json_records.ErrorAnswer(error=found))
    return Response(content, status, headers=_HEADERS.get(status), media_type="application/json")
