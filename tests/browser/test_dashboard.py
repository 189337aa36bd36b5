"""A reader's way through the dashboard in a real browser: jobs, a front, a map, its file."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from autotune.lifecycle import held
from autotune.map_file import dump, map_document
from autotune.store.records import JobState, TrialRecord
from search_spaces.choice import ActivationMode, choice_named

if TYPE_CHECKING:
    from tests.browser.conftest import Dashboard

Visit = Callable[..., Page]
#: Plotly draws the traces of the front in this order, after the front's line.
BASELINES = 4


def _ids(page: Page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}


def _points(page: Page, trace: int) -> Locator:
    return page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").nth(trace).locator(".points path")


def _shown(page: Page) -> int:
    caption = page.get_by_text("maps shown").inner_text()
    return int(caption.split()[0])


def _cells(page: Page) -> Counter[tuple[str, int]]:
    """Return (precision, layers) of the legend; its text is ``int8 (12)``."""
    legend = page.locator(".js-plotly-plot").first.locator(".legendtext")
    legend.first.wait_for()
    found = [re.fullmatch(r"(\w+) \((\d+)\)", text.strip()) for text in legend.all_text_contents()]
    return Counter({(match[1], int(match[2])): 1 for match in found if match})


def _letters(trial: TrialRecord) -> Counter[str]:
    letters = {ActivationMode.STATIC: "S", ActivationMode.DYNAMIC: "D", ActivationMode.NONE: "W"}
    choices = [choice_named(name) for name in trial.choices.values()]
    return Counter(letters[choice.activation] for choice in choices if choice.precision.is_quantized)


def _assert_strip(page: Page, trial: TrialRecord) -> None:
    page.locator(".bartext").first.wait_for()  # the chart of the page before may still be there
    precisions = Counter(choice_named(name).precision.value for name in trial.choices.values())
    assert _cells(page) == Counter(dict.fromkeys(precisions.items(), 1))
    drawn = page.locator(".js-plotly-plot").first.locator(".bartext").all_text_contents()
    assert Counter(text for text in drawn if text.strip()) == _letters(trial)


def test_from_the_jobs_over_the_front_to_a_map_and_its_file(
    visit: Visit, dashboard: "Dashboard", tmp_path: Path
) -> None:
    job = dashboard.store.job(dashboard.jobs["finished"])
    page = visit("/")
    # The table is a canvas; the newest job is its first row, 35 px below the heading row.
    page.get_by_test_id("stDataFrame").click(position={"x": 120, "y": 52})
    page.get_by_role("heading", name="Front").wait_for()
    assert _ids(page)["job"] == job.id

    names = page.locator(".js-plotly-plot").first.locator(".textpoint text")
    names.first.wait_for()
    assert names.all_text_contents() == [
        "fp32",
        "bf16",
        "int8_static",
        "int8_dynamic",
        "int8_weight_only",
        "int4_weight_only",
    ]

    _points(page, BASELINES).nth(3).click(force=True)
    page.get_by_role("heading", name="Map").wait_for()
    assert _ids(page) == {"job": job.id, "trial": "3"}
    trial = dashboard.store.trials(job.id)[3]
    _assert_strip(page, trial)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download the map (JSON)").click()
    assert download.value.suggested_filename == f"map-{job.id}-3.json"
    download.value.save_as(tmp_path / "map.json")
    text = (tmp_path / "map.json").read_text(encoding="utf-8")
    assert text == dump(map_document(job, trial))
    assert {name: layer["choice"] for name, layer in json.loads(text)["layers"].items()} == trial.choices

    shared = visit(page.url.removeprefix(dashboard.address))
    _assert_strip(shared, trial)
    assert _ids(shared) == _ids(page)


def test_a_sampled_map_opens_from_its_point(visit: Visit, dashboard: "Dashboard") -> None:
    job_id = dashboard.jobs["finished"]
    members = [number for number in dashboard.store.fronts(job_id)[-1].members if number > 5]
    page = visit(f"/front?job={job_id}")
    _points(page, BASELINES - 1).nth(len(members) - 1).click(force=True)
    page.get_by_role("heading", name="Map").wait_for()
    assert _ids(page)["trial"] == str(members[-1])
    _assert_strip(page, dashboard.store.trials(job_id)[members[-1]])


def test_a_running_job_grows_while_it_is_watched(visit: Visit, dashboard: "Dashboard", seed: SimpleNamespace) -> None:
    job_id = dashboard.jobs["running"]
    page = visit(f"/front?job={job_id}")
    expect(page.get_by_text("maps shown")).to_be_visible()
    page.evaluate("window.neverReloaded = true")
    before = _shown(page)
    recorded = len(dashboard.store.trials(job_id))
    assert seed.record_next(dashboard.store, job_id).figures
    expect(page.get_by_text(f"{recorded + 1} of 60 trials")).to_be_visible()
    expect(page.get_by_text(f"{before + 1} maps shown")).to_be_visible()
    assert page.evaluate("window.neverReloaded")

    page.get_by_text("Pause live updates").click()
    page.wait_for_timeout(500)
    seed.record_next(dashboard.store, job_id)
    page.wait_for_timeout(3500)
    expect(page.get_by_text(f"{recorded + 1} of 60 trials")).to_be_visible()
    page.get_by_text("Pause live updates").click()
    expect(page.get_by_text(f"{recorded + 2} of 60 trials")).to_be_visible()

    dashboard.store.change_job(job_id, held(0, state=JobState.FINISHED))
    expect(page.get_by_text("Pause live updates")).to_be_hidden()
    expect(page.get_by_text("✓ finished")).to_be_visible()


def test_axes_are_chosen_and_shared_by_the_link(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/front?job={dashboard.jobs['finished']}")
    page.get_by_text("p95", exact=True).click()
    page.get_by_text("Divergence", exact=True).first.click()
    # One chart's, not also that of the chart with other axes that it replaces.
    expect(page.get_by_text("Latency p95 (ms, lower is better)")).to_have_count(1)
    expect(page.get_by_text("Divergence from full precision (lower is better)")).to_have_count(1)
    shared = visit(page.url.removeprefix(dashboard.address))
    expect(shared.get_by_text("Latency p95 (ms, lower is better)")).to_be_visible()
    expect(shared.get_by_text("Divergence from full precision (lower is better)")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/front", "/map"])
def test_a_hostile_name_is_only_text(visit: Visit, dashboard: "Dashboard", seed: SimpleNamespace, path: str) -> None:
    page = visit(f"{path}?job={dashboard.jobs['hostile']}")
    page.wait_for_timeout(1500)  # an image would be fetched by now; requests elsewhere are complaints
    assert page.locator("img[src='x'], img[src*='evil']").count() == 0
    if path != "/":
        assert page.get_by_role("combobox").first.input_value().startswith(seed.HOSTILE[:60])


@pytest.mark.parametrize("path", ["/", "/front", "/map"])
def test_a_phone_needs_no_sideways_scrolling(visit: Visit, dashboard: "Dashboard", path: str) -> None:
    page = visit(f"{path}?job={dashboard.jobs['finished']}", 390)
    page.wait_for_timeout(1500)
    widths = page.evaluate(
        "['body', '[data-testid=stMain]'].map(s => document.querySelector(s)).map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(content <= visible for content, visible in widths)
