"""Errors of jobs; all are ``search_spaces.errors.AutotuneError``, each with its own exit code."""

from search_spaces.errors import AutotuneError, MapError


class JobSpecError(AutotuneError):
    """A job file that does not follow the schema; the message lists every error with its field path."""


class NotFoundError(AutotuneError):
    """A job or trial that is not in the database."""


class StoreError(AutotuneError):
    """A database that cannot be opened, read or written."""


class ConflictError(AutotuneError):
    """An action that the job's present state does not allow."""


class NoFeasibleMapError(AutotuneError):
    """No measured map satisfies the constraints; the message names the nearest one and what it misses."""


class ExportError(MapError):
    """A map that a format cannot express, a format whose library is missing, or an export that is damaged."""
