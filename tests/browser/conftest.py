"""A seeded database, a dashboard that serves it, and a browser that looks at it."""

import os
import runpy
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from autotune.store.base import Store
from autotune.store.open import open_store

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --no-first-run"
)
#: A page whose script has run.
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
#: Streamlit's page asks for these below a page's own path before it asks at the root.
PROBES = ("/_stcore/health", "/_stcore/host-config")

#: Two refreshes of a live page, on a busy machine.
expect.set_options(timeout=20_000)

_seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("seed.py"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A running dashboard and its database."""

    address: str
    store: Store
    #: Scenario -> job id.
    jobs: dict[str, str]


@pytest.fixture(scope="session")
def seed() -> SimpleNamespace:
    """Return what ``seed.py`` defines."""
    return _seed


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Dashboard]:
    """Yield a dashboard that serves a database with jobs of several shapes."""
    folder = tmp_path_factory.mktemp("browser")
    url = f"sqlite:///{folder / 'jobs.db'}"
    store = open_store(url)
    jobs = _seed.seed(store, "language", "hostile", "infeasible", "elsewhere", "running", "finished")
    with serving(url, folder, free_port()) as address:
        yield Dashboard(address=address, store=store, jobs=jobs)
    store.close()


@contextmanager
def serving(url: str, folder: Path, port: int) -> Iterator[str]:
    """Run a dashboard on the database at ``url``, its log in ``folder``, and yield its address."""
    log = folder / "streamlit.log"
    command = [sys.executable, "-m", "streamlit", "run", str(APP), f"--server.port={port}"]
    with log.open("w") as file:
        environment = {**os.environ, "AUTOTUNE_DATABASE": url}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the installed Chromium; its absence is a failure, not a reason to skip."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.fail("the browser tests need Chromium on the PATH; install it, for example: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yield a browser for all tests."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Yield the list of everything pages complain about; it must be empty when the test ends."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture
def visit(browser: Browser, dashboard: Dashboard, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Yield a function that opens a path of the dashboard in a browser of its own."""
    contexts: list[BrowserContext] = []

    def open_path(path: str, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Page:
        viewport: ViewportSize = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, accept_downloads=True, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        _listen(page, dashboard.address, complaints)
        page.goto(dashboard.address + path)
        page.get_by_role("heading", level=1).wait_for()
        page.locator(IDLE).wait_for()  # not half of it, with what is left of the page before
        return page

    yield open_path
    for context in contexts:
        context.close()


def _listen(page: Page, address: str, complaints: list[str]) -> None:
    """Collect script errors, console errors, failed requests, and requests to anywhere else."""
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on(
        "console",
        lambda message: (
            complaints.append(f"console: {message.text} at {message.location}")
            if message.type == "error" and not message.location.get("url", "").endswith(PROBES)
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "data:", "blob:")) else complaints.append(f"to {request.url}")
        ),
    )


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the dashboard did not start:\n{log.read_text()}")
