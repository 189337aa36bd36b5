"""Connections: opens SQLite and PostgreSQL such that both give the same guarantees."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine

from autotune.errors import StoreError

#: Seconds that an SQLite writer waits for another writer.
_PATIENCE_S = 30

_FORMS = "a database URL must be sqlite:///FILE or postgresql://USER@HOST/NAME"


def parse_url(url: str) -> URL:
    """Return the parsed URL, with the driver this project ships.

    Raises:
        StoreError: if this project cannot use the URL.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        # Do not repeat the text: it cannot be parsed, so it may contain a password anywhere.
        raise StoreError(f"{_FORMS}, but the given text is not a URL") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed.set(drivername="sqlite")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    shown = parsed.render_as_string(hide_password=True)
    raise StoreError(f"{_FORMS}, but got {shown!r}")


def make_engine(url: URL, *, read_only: bool) -> Engine:
    """Return an engine with durable transactions, or with read-only ones if ``read_only``."""
    if url.get_backend_name() == "postgresql":
        options = "-c statement_timeout=30000" + (" -c default_transaction_read_only=on" if read_only else "")
        return sa.create_engine(url, pool_pre_ping=True, connect_args={"options": options, "connect_timeout": 10})
    assert url.database is not None
    path = Path(url.database).absolute()
    if read_only:
        if not path.exists():
            raise StoreError(
                f"there is no database {str(path)!r} yet; create it with 'autotune run', or use --database"
            )
    else:
        _make_folder(path)
    engine = sa.create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": _PATIENCE_S},
        execution_options={"reading": True} if read_only else {},
    )
    if read_only:
        sa.event.listen(engine, "do_connect", _open_to_read)
    sa.event.listen(engine, "connect", _configure_reader if read_only else _configure_writer)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the database folder {str(path.parent)!r}: {error.strerror}") from None


def _open_to_read(_: object, __: object, arguments: list[str], options: dict[str, Any]) -> None:
    # Set the mode here, not in the engine's URL, because that URL is shown to people.
    arguments[:] = [f"file:{quote(arguments[0])}?mode=ro"]
    options["uri"] = True


def _configure_reader(connection: Any, _: object) -> None:
    # Stop the driver from opening transactions itself; the ``begin`` listener opens them.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 30000")


def _configure_writer(connection: Any, _: object) -> None:
    _configure_reader(connection, _)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    # With FULL a committed trial survives a power failure, not only the death of the process.
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: sa.Connection) -> None:
    # A deferred transaction that reads before it writes can fail at once, regardless of the timeout.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
