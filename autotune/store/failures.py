"""Conversion of a database's errors into ours, with a decision whether waiting may help."""

import sqlalchemy as sa
from sqlalchemy.engine import URL

from autotune.errors import StoreError, StoreUnavailableError

#: Parts of SQLite's messages for temporary errors: no space, another writer, or the file system.
_SQLITE_PASSING = ("disk is full", "is locked", "disk i/o error", "unable to open database file")
#: SQLSTATEs of temporary PostgreSQL errors: lost connection, lack of resources, shutdown or startup, write conflicts
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_POSTGRES_PASSING = ("08", "53", "57P", "58030", "40001", "40P01", "55P03")


def store_error(error: sa.exc.SQLAlchemyError, url: URL) -> StoreError:
    """Return the database's error as this project's; as ``StoreUnavailableError`` if waiting may help."""
    kind = StoreUnavailableError if _passes(error) else StoreError
    return kind(f"the database {url.render_as_string()} failed: {reason(error)}")


def reason(error: sa.exc.SQLAlchemyError) -> str:
    """Return the driver's own message as one line, without statement and parameters."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return " ".join(str(cause).split())


def _passes(error: sa.exc.SQLAlchemyError) -> bool:
    if isinstance(error, sa.exc.TimeoutError):
        return True  # every connection of the pool is in use
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state.startswith(_POSTGRES_PASSING)
    text = reason(error).lower()
    # Without a connection, PostgreSQL's driver has no SQLSTATE.
    lost = isinstance(error, sa.exc.OperationalError) and "sqlite" not in type(error.orig).__module__
    return error.connection_invalidated or lost or any(words in text for words in _SQLITE_PASSING)
