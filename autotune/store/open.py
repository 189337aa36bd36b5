"""Open a store by its URL, and create or upgrade its tables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from autotune.errors import StoreError
from autotune.store.base import Store
from autotune.store.engine import make_engine, parse_url
from autotune.store.failures import reason
from autotune.store.sql import SqlStore

#: Our own version table, because other tools may use Alembic's default table in the same database.
VERSION_TABLE = "autotune_alembic_version"

#: PostgreSQL's advisory lock that serialises migrations; an arbitrary constant.
_MIGRATION_LOCK = 7_163_052_118


def default_url() -> str:
    """Return the URL of the default database."""
    return os.environ.get("AUTOTUNE_DATABASE") or "sqlite:///autotune.db"


def open_store(url: str, *, read_only: bool = False, patience_s: float = 10.0) -> Store:
    """Return the store at ``url``; a writable one is created or upgraded first.

    Args:
        url: URL of the database.
        read_only: whether to prevent writing.
        patience_s: seconds that each later call retries while the database is down, busy or full.

    Raises:
        StoreError: if the URL is wrong, the database cannot be reached, or its tables belong to
            another version of this program.
    """
    engine = make_engine(parse_url(url), read_only=read_only)
    with _errors(engine):
        if read_only:
            with engine.connect() as connection:
                _check_current(connection, engine)
        else:
            _upgrade(engine)
    return SqlStore(engine, patience_s=patience_s)


def attach_store(url: str, *, patience_s: float) -> Store:
    """Return the store at ``url``, whose tables must already match this version; it connects on first use.

    Unlike ``open_store`` it also waits for a database that is down at first.
    """
    return SqlStore(make_engine(parse_url(url), read_only=False), patience_s=patience_s)


def check(url: str) -> None:
    """Check that the database at ``url`` can be read and its tables match this version.

    Raises:
        StoreError: if the check fails.
    """
    open_store(url, read_only=True).close()


def migrate(url: str) -> str:
    """Create or upgrade the tables at ``url`` and return their revision.

    Raises:
        StoreError: see ``open_store``.
    """
    engine = make_engine(parse_url(url), read_only=False)
    with _errors(engine):
        _upgrade(engine)
    engine.dispose()
    return _scripts().get_current_head() or ""


def alembic_config(connection: Connection | None = None) -> Config:
    """Return the configuration of this project's migrations, run on ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("autotune.store") / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(engine: Engine) -> None:
    with migrating(engine) as connection:
        # SQLite needs no lock: its transactions begin IMMEDIATE, so writers already exclude each other.
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        revision = _revision(connection)
        if revision == _scripts().get_current_head():
            return
        _check_known(revision, engine)
        command.upgrade(alembic_config(connection), "head")


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that may rebuild tables.

    SQLite changes a table by copying and dropping it. With enforced foreign keys, dropping it would
    delete the rows that refer to it (https://www.sqlite.org/lang_altertable.html, section 7).
    """
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                yield connection
            return
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise StoreError("the upgrade would break references between tables, so nothing was changed")
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _check_current(connection: Connection, engine: Engine) -> None:
    revision = _revision(connection)
    if revision == _scripts().get_current_head():
        return
    _check_known(revision, engine)
    raise StoreError(
        f"the tables of {engine.url.render_as_string()} are at revision {revision or 'none'}, but this program needs "
        f"{_scripts().get_current_head()}; run: autotune db upgrade"
    )


def _check_known(revision: str | None, engine: Engine) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise StoreError(
            f"the tables of {engine.url.render_as_string()} are at revision {revision}, which is newer than this "
            "program; run: pip install --upgrade quant-autotune; or name another database"
        )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


@contextmanager
def _errors(engine: Engine) -> Iterator[None]:
    """Convert the database's errors into this project's, and dispose of the engine after an error."""
    try:
        yield
    except StoreError:
        engine.dispose()
        raise
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(f"cannot open the database {engine.url.render_as_string()}: {reason(error)}") from error
