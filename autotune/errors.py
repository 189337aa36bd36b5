"""Errors of jobs; all are ``search_spaces.errors.AutotuneError``, each with its own exit code."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from search_spaces.errors import AutotuneError, MapError

#: The end of a message of ``search_spaces.errors.unknown``.
_SUGGESTED = re.compile(r"did you mean '(.+?)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """What is wrong with one field."""

    #: Keys and positions that lead to the field, joined by dots.
    path: str
    #: The rule, the value and the way out.
    message: str

    @property
    def suggestion(self) -> str | None:
        """The name that was probably meant; None if none is close."""
        found = _SUGGESTED.search(self.message)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class JobSpecError(AutotuneError):
    """A job file that does not follow the schema; the message lists every error with its field path."""

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        #: The errors of the message one by one; empty if it is about no single field.
        self.errors = tuple(errors)

    @classmethod
    def of(cls, error: FieldError) -> Self:
        """Return the error about a single field."""
        return cls(str(error), [error])


class TooLargeError(JobSpecError):
    """A job file, or another request, of more bytes than are read."""


class NotFoundError(AutotuneError):
    """A job, trial or token that is not in the database, or a file that does not exist."""


class StoreError(AutotuneError):
    """A database that cannot be opened, read or written."""


class StoreUnavailableError(StoreError):
    """A database that may work again later: it cannot be reached, is busy, or its disk is full."""


class MethodNotAllowedError(AutotuneError):
    """An HTTP method that a route does not have."""


class ConflictError(AutotuneError):
    """An action that the job's present state does not allow."""


class AccessError(AutotuneError):
    """A request that the service refuses to whoever sent it."""


class UnauthenticatedError(AccessError):
    """A request without a valid token."""


class ForbiddenError(AccessError):
    """A request whose token does not allow it."""


class TooManyRequestsError(AccessError):
    """A request of somebody who sent too many wrong ones lately."""


class JobFailedError(AutotuneError):
    """A job that was waited for and failed; the message is what it failed of."""


class NoFeasibleMapError(AutotuneError):
    """No measured map satisfies the constraints; the message names the nearest one and what it misses."""


class LeaseLostError(AutotuneError):
    """A driver's job was given to another driver; it must not write any more."""


class Stopped(BaseException):
    """This process was told to end. Like ``KeyboardInterrupt``, it is nothing that code should handle on its way."""


class ExportError(MapError):
    """A map that a format cannot express, a format whose library is missing, or an export that is damaged."""
