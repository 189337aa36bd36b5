"""Errors of jobs; all are ``search_spaces.errors.AutotuneError``, each with its own exit code."""

from search_spaces.errors import AutotuneError, MapError


class JobSpecError(AutotuneError):
    """A job file that does not follow the schema; the message lists every error with its field path."""


class TooLargeError(JobSpecError):
    """A job file, or another request, of more bytes than are read."""


class NotFoundError(AutotuneError):
    """A job, trial or token that is not in the database, or a file that does not exist."""


class StoreError(AutotuneError):
    """A database that cannot be opened, read or written."""


class StoreUnavailableError(StoreError):
    """A database that may work again later: it cannot be reached, is busy, or its disk is full."""


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
