"""Take the pictures of the documentation: every page of the dashboard, on jobs that are run for it first.

python tests/browser/screenshots.py docs/images [DATABASE]

A database that was recorded before is pictured again; without one, a few searches of small models are run, which
takes some minutes.
"""

import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from playwright.sync_api import Page, expect

from autotune import run
from autotune.errors import AutotuneError
from autotune.job_spec import JobSpec
from autotune.jobs import submit
from autotune.progress import Progress, Silent
from autotune.store.base import Store
from autotune.store.open import open_store

#: Picture -> path of the page, its height, and whether it is dark; ``{}`` is the job shown, ``{other}`` another one.
PICTURES = {
    "jobs": ("/", 620, False),
    "submit": ("/submit", 1000, False),
    "front": ("/front?job={}", 1400, False),
    "front-dark": ("/front?job={}", 1400, True),
    "map": ("/map?job={}", 1900, False),
    "diff": ("/diff?job={}", 1900, False),
    "layers": ("/layers?job={}", 1100, True),
    "compare": ("/compare?jobs={}&jobs={other}", 1050, False),
    "system": ("/system", 700, False),
}
CHARTLESS = ("jobs", "submit", "system")
EXAMPLES = Path(__file__).parents[2] / "examples"
#: Name of a job -> the example it starts from, what is changed in it, and the trials after which it is stopped.
JOBS: dict[str, tuple[str, dict[str, dict[str, Any]], int | None]] = {
    "digits, a typing error": ("digits-cnn", {"task": {"name": "digits-cmn"}}, None),
    "digits, too much asked": ("digits-cnn", {"constraints": {"latency_p95_ms": {"max": 0.01}}}, None),
    "digits, stopped by hand": ("digits-cnn", {}, 14),
    "digits, small batches": ("digits-vit", {"measurement": {"batch_sizes": [64]}, "search": {"trials": 40}}, None),
    "digits, by a transformer": ("digits-vit", {"calibration": {"observer": "percentile"}}, None),
}  # fmt: skip
SHOWN, OTHER = "digits, by a transformer", "digits, small batches"


class Stopper(Silent):
    """Stops a run after some trials, as a user would."""

    def __init__(self, trials: int | None) -> None:
        self._left = trials

    def trial(self, progress: Progress) -> None:
        """See ``Listener.trial``."""
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def record(store: Store) -> None:
    """Run the jobs that are pictured; one more is left to wait."""
    for name, (example, changes, stopped_after) in JOBS.items():
        job = submit(store, _spec(name, example, changes), served=False)
        try:
            run.run_job(store, job.id, listener=Stopper(stopped_after))
        except (AutotuneError, KeyboardInterrupt) as end:
            print(f"{name}: {end!r}")
    submit(store, _spec("digits, tonight", "digits-vit", {}))


def _spec(name: str, example: str, changes: Mapping[str, Mapping[str, Any]]) -> JobSpec:
    spec = JobSpec.load(EXAMPLES / f"{example}.yaml").dump() | {"name": name}
    return JobSpec.parse(spec | {section: spec[section] | dict(keys) for section, keys in changes.items()})


def main(folder: Path, recorded: Path | None = None) -> None:
    """Write ``dashboard-PAGE.png`` for every page."""
    tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("conftest.py"))))
    with tempfile.TemporaryDirectory() as scratch:
        url = f"sqlite:///{recorded or Path(scratch, 'jobs.db')}"
        store = open_store(url)
        if not store.jobs():
            record(store)
        jobs = {job.name: job.id for job in store.jobs()}
        store.close()
        with tools.serving(url, Path(scratch)) as address, tools.chromium() as browser:
            for name, (path, height, dark) in PICTURES.items():
                context = browser.new_context(
                    viewport={"width": 1280, "height": height},
                    color_scheme="dark" if dark else "light",
                    timezone_id="UTC",
                )
                page = context.new_page()
                page.goto(address + path.format(jobs[SHOWN], other=jobs[OTHER]))
                _settle(page, name not in CHARTLESS)
                page.screenshot(path=folder / f"dashboard-{name}.png")
                context.close()


def _settle(page: Page, charts: bool) -> None:
    """Wait until the page is complete and drawn."""
    page.get_by_role("heading", level=1).wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    if charts:
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
    page.wait_for_timeout(2000)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
