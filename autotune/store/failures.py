"""What a database's error means: whether it is worth waiting, and how it is told."""

import sqlalchemy as sa
from sqlalchemy.engine import URL

from autotune.errors import StoreError, StoreUnavailableError

#: What SQLite says when space, another writer or the file system is in the way.
_SQLITE_PASSING = ("disk is full", "is locked", "disk i/o error", "unable to open database file")
#: SQLSTATEs of PostgreSQL that pass: connection lost, out of resources, shutting down or starting, conflicts of writers
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_POSTGRES_PASSING = ("08", "53", "57P", "58030", "40001", "40P01", "55P03")


def store_error(error: sa.exc.SQLAlchemyError, url: URL) -> StoreError:
    """Return this project's error for the database's one; ``StoreUnavailableError`` if waiting may help."""
    kind = StoreUnavailableError if _passes(error) else StoreError
    return kind(f"the database {url.render_as_string()} failed: {reason(error)}")


def reason(error: sa.exc.SQLAlchemyError) -> str:
    """Return the driver's own words, in one line, without statement and parameters."""
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
    # Without a connection PostgreSQL's driver has no SQLSTATE to tell.
    lost = isinstance(error, sa.exc.OperationalError) and "sqlite" not in type(error.orig).__module__
    return error.connection_invalidated or lost or any(words in text for words in _SQLITE_PASSING)
