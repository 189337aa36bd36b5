"""Take the pictures of the documentation: every page of the dashboard on jobs that ``seed.py`` makes up.

python tests/browser/screenshots.py docs/images

With the URL of a database, only the front of its newest job, as ``demo-front.png``:

python tests/browser/screenshots.py docs/images sqlite:////absolute/path/demo/autotune.db
"""

import runpy
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from playwright.sync_api import Page, expect

from autotune.store.open import open_store

#: Picture -> path of the page, its height, and whether it is dark; ``{}`` is the job shown.
PICTURES = {
    "jobs": ("/", 680, False),
    "submit": ("/submit", 1020, False),
    "front": ("/front?job={}", 1320, False),
    "front-dark": ("/front?job={}", 1320, True),
    "map": ("/map?job={}&trial=24", 1920, False),
    "diff": ("/diff?job={}&first=3&second=24", 1680, False),
    "layers": ("/layers?job={}", 1080, True),
    "compare": ("/compare?jobs={}&jobs={other}", 1120, False),
    "system": ("/system", 860, False),
}
CHARTLESS = ("jobs", "submit", "system")
SCENARIOS = ("failed_late", "paused", "queued", "infeasible", "elsewhere", "running", "finished")


def main(folder: Path, database: str | None = None) -> None:
    """Write ``dashboard-PAGE.png`` for every page, or ``demo-front.png`` of a database."""
    here = Path(__file__).parent
    tools, seed = (SimpleNamespace(**runpy.run_path(str(here / name))) for name in ("conftest.py", "seed.py"))
    with tempfile.TemporaryDirectory() as scratch:
        url = database or f"sqlite:///{scratch}/jobs.db"
        with closing(open_store(url)) as store:
            jobs = {"finished": store.jobs()[0].id, "elsewhere": ""} if database else seed.seed(store, *SCENARIOS)
        pictures = {"demo-front": PICTURES["front"]} if database else {f"dashboard-{n}": p for n, p in PICTURES.items()}
        with tools.serving(url, Path(scratch), 8511) as address, tools.chromium() as browser:
            for name, (path, height, dark) in pictures.items():
                context = browser.new_context(
                    viewport={"width": 1280, "height": height},
                    color_scheme="dark" if dark else "light",
                    timezone_id="UTC",
                )
                page = context.new_page()
                page.goto(address + path.format(jobs["finished"], other=jobs["elsewhere"]))
                _settle(page, not any(name.endswith(page_name) for page_name in CHARTLESS))
                page.screenshot(path=folder / f"{name}.png")
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
    main(Path(sys.argv[1]), *sys.argv[2:])
