"""A reader's way through the dashboard in a real browser: jobs, a front, a map, its file."""

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from autotune.jobs.lifecycle import with_fields
from autotune.jobs.records import JobRecord, JobState, TrialRecord
from autotune.maps.map_file import dump, map_document
from search_spaces.choice import ActivationMode, choice_named

if TYPE_CHECKING:
    from tests.browser.conftest import Dashboard

Visit = Callable[..., Page]
#: Plotly draws the traces of the front in this order, after the front's line.
BASELINES = 4
PAGES = ("/", "/submit", "/front", "/map", "/diff", "/layers", "/compare", "/system")
#: Charts of a finished job.
CHARTS = {"/front": 2, "/map": 3, "/diff": 2, "/layers": 4, "/compare": 1}
#: Text of charts outside cells -> contrast with the page, by WCAG 2.2.
CONTRASTS = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => channels(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const page = luminance(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
  const texts = [...document.querySelectorAll('.js-plotly-plot text:not(.bartext)')].filter(t => t.textContent.trim());
  return Object.fromEntries(texts.map(text => {
    const ink = luminance(getComputedStyle(text).fill);
    return [text.textContent, (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05)];
  }));
}"""
#: Pairs of texts of one chart that overlap; cells and hidden labels do not count.
OVERLAPS = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => {
  const texts = [...chart.querySelectorAll('text:not(.bartext)')].filter(t => t.textContent.trim())
    .map(t => [t.textContent, t.getBoundingClientRect()]).filter(([, box]) => box.width > 0);
  return texts.flatMap(([one, its], at) => texts.slice(at + 1)
    .filter(([, box]) => Math.min(its.right, box.right) - Math.max(its.left, box.left) > 0.5
      && Math.min(its.bottom, box.bottom) - Math.max(its.top, box.top) > 0.5)
    .map(([other]) => [one, other]));
})"""
#: Text of cards and buttons that is cut off.
CUT = """() => [...document.querySelectorAll('[data-testid=stMetric], [data-testid=stButtonGroup]')]
  .flatMap(part => [part, ...part.querySelectorAll('*')])
  .filter(e => getComputedStyle(e).display !== 'inline' && e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent)"""
each_page = pytest.mark.parametrize("path", PAGES)


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


def _assert_labels(page: Page) -> None:
    """Check that picks and baselines have their labels."""
    labels = page.locator(".js-plotly-plot").first.locator(".textpoint text:visible")
    labels.first.wait_for()
    assert {*labels.all_text_contents()} == {
        "fastestsmallest",  # on two lines
        "knee",
        "fp32",
        "bf16",
        "int8_static",
        "int8_dynamic",
        "int8_weight_only",
        "int4_weight_only",
    }


def test_from_the_jobs_over_the_front_to_a_map_and_its_file(
    visit: Visit, dashboard: "Dashboard", tmp_path: Path
) -> None:
    job = dashboard.store.job(dashboard.jobs["finished"])
    page = visit("/")
    # The table is a canvas; the newest job is its first row, 35 px below the heading row.
    page.get_by_test_id("stDataFrame").click(position={"x": 120, "y": 52})
    page.get_by_role("heading", name="Front").wait_for()
    assert _ids(page)["job"] == job.id

    _assert_labels(page)

    _points(page, BASELINES).nth(3).click(force=True)
    page.get_by_role("heading", name="Map").wait_for()
    assert _ids(page).items() >= {"job": job.id, "trial": "3"}.items()
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
    page.locator("[data-test-script-state=notRunning]").wait_for()  # on a busy machine, updates have just been paused
    seed.record_next(dashboard.store, job_id)
    page.wait_for_timeout(3500)
    expect(page.get_by_text(f"{recorded + 1} of 60 trials")).to_be_visible()
    page.get_by_text("Pause live updates").click()
    expect(page.get_by_text(f"{recorded + 2} of 60 trials")).to_be_visible()

    dashboard.store.change_job(job_id, with_fields(0, state=JobState.FINISHED))
    expect(page.get_by_text("Pause live updates")).to_be_hidden()
    expect(page.get_by_text("✓ finished")).to_be_visible()


def test_axes_are_chosen_and_shared_by_the_link(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/front?job={dashboard.jobs['finished']}")
    for axis in ("p95", "Divergence"):
        page.get_by_test_id("stButtonGroup").get_by_text(axis, exact=True).click()
    # One chart's, not also that of the chart with other axes that it replaces.
    expect(page.get_by_text("Latency p95 (ms, lower is better)")).to_have_count(1)
    expect(page.get_by_text("Divergence from full precision (lower is better)")).to_have_count(1)
    shared = visit(page.url.removeprefix(dashboard.address))
    expect(shared.get_by_text("Latency p95 (ms, lower is better)")).to_be_visible()
    expect(shared.get_by_text("Divergence from full precision (lower is better)")).to_be_visible()


def test_the_answer_the_limits_and_the_chart_are_on_the_first_screen(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/front?job={dashboard.jobs['finished']}")
    chart = page.locator(".js-plotly-plot").first
    for part in (
        page.get_by_role("heading", name="Recommended: trial 20"),
        page.get_by_text("faster than the fastest uniform map"),
        page.get_by_role("slider", name="Weight memory at most"),
        chart.locator(".xtitle"),
    ):
        part.wait_for()
        box = part.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 900
    slider, drawn = page.get_by_role("slider").first.bounding_box(), chart.bounding_box()
    assert slider is not None
    assert drawn is not None
    assert slider["x"] > drawn["x"] + drawn["width"]
    first = page.get_by_text("autotune", exact=True).bounding_box()
    assert first is not None
    assert first["y"] < 40


@pytest.mark.parametrize("quality", ["Accuracy", "Divergence"])
@pytest.mark.parametrize("job", ["finished", "language", "running"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_text_of_the_front_covers_another(
    visit: Visit, dashboard: "Dashboard", job: str, quality: str, width: int
) -> None:
    page = visit(f"/front?job={dashboard.jobs[job]}&quality={quality}", width)
    page.locator(".js-plotly-plot .textpoint text:visible").first.wait_for()
    page.wait_for_timeout(1000)
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", ["/map", "/diff", "/layers", "/compare"])
def test_no_text_of_a_chart_covers_another(visit: Visit, dashboard: "Dashboard", path: str, width: int) -> None:
    page = visit(f"{path}?job={dashboard.jobs['finished']}", width)
    expect(page.locator(".js-plotly-plot")).to_have_count(CHARTS[path])
    page.wait_for_timeout(1500)
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_shares_of_layers_end_at_all(visit: Visit, dashboard: "Dashboard", width: int) -> None:
    page = visit(f"/layers?job={dashboard.jobs['finished']}", width)
    expect(page.locator(".js-plotly-plot")).to_have_count(CHARTS["/layers"])
    shown = page.locator(".js-plotly-plot .xtick text:visible")
    expect(shown.filter(has_text=re.compile("^100%$"))).to_have_count(2)


def test_a_phone_has_the_answer_before_the_chart_and_the_controls(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/front?job={dashboard.jobs['finished']}", 390)
    page.locator(".js-plotly-plot").first.wait_for()
    parts = (
        page.get_by_role("heading", name="Recommended: trial 20"),
        page.locator(".js-plotly-plot").first,
        page.get_by_role("slider").first,
    )
    tops = [box["y"] for part in parts if (box := part.bounding_box())]
    assert tops == sorted(tops)
    assert len(tops) == 3
    assert tops[0] < 300


@each_page
def test_every_page_has_the_bar_and_a_title_of_its_own(visit: Visit, dashboard: "Dashboard", path: str) -> None:
    job_id = dashboard.jobs["finished"]
    page = visit(f"{path}?job={job_id}")
    heading = page.get_by_role("heading", level=1).inner_text()
    about = ": MiniLM for the search service" if path in ("/front", "/map", "/diff", "/layers") else ""
    expect(page).to_have_title(f"{heading}{about} | autotune")
    expect(page.get_by_role("combobox", name="Job", exact=True)).to_have_value(
        f"MiniLM for the search service ({job_id})"
    )
    page.locator(".st-key-pages").get_by_role("link", name="Layers").click()
    page.get_by_role("heading", name="Layers", level=1).wait_for()
    assert _ids(page)["job"] == job_id


def test_a_job_chosen_in_the_bar_opens_its_front(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit("/system")
    _choose_by_keyboard(page, "Job", "edge box")
    page.get_by_role("heading", name="Front", level=1).wait_for()
    assert _ids(page)["job"] == dashboard.jobs["elsewhere"]
    _choose_by_keyboard(page, "Job", "search service")
    page.wait_for_url(re.compile(dashboard.jobs["finished"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", CHARTS)
def test_text_in_charts_has_enough_contrast(visit: Visit, dashboard: "Dashboard", path: str, scheme: str) -> None:
    page = visit(f"{path}?job={dashboard.jobs['finished']}", scheme=scheme)
    expect(page.locator(".js-plotly-plot")).to_have_count(CHARTS[path])
    page.wait_for_timeout(1500)
    if path == "/front":  # a hover has the page's background
        _points(page, BASELINES).first.hover(force=True)
        page.locator(".hoverlayer text").first.wait_for()
    # Text on cells has the colour of the cell behind it; the palette takes care of that.
    found = page.evaluate(CONTRASTS)
    assert found
    assert {text: contrast for text, contrast in found.items() if contrast < 4.5} == {}


@each_page
def test_a_hostile_name_is_only_text(visit: Visit, dashboard: "Dashboard", seed: SimpleNamespace, path: str) -> None:
    page = visit(f"{path}?job={dashboard.jobs['hostile']}")
    page.wait_for_timeout(1500)  # an image would be fetched by now; requests elsewhere are complaints
    assert page.locator("img[src='x'], img[src*='evil']").count() == 0
    if path in ("/front", "/map", "/diff", "/layers"):
        assert page.get_by_role("combobox", name="Job", exact=True).input_value().startswith(seed.HOSTILE[:60])


@each_page
def test_a_phone_needs_no_sideways_scrolling(visit: Visit, dashboard: "Dashboard", path: str) -> None:
    page = visit(f"{path}?job={dashboard.jobs['finished']}", 390)
    page.wait_for_timeout(1500)
    widths = page.evaluate(
        "['body', '[data-testid=stMain]'].map(s => document.querySelector(s)).map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(content <= visible for content, visible in widths)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", ["/front", "/map"])
def test_no_card_and_no_button_is_cut_off(visit: Visit, dashboard: "Dashboard", path: str, width: int) -> None:
    for job in ("finished", "language"):
        page = visit(f"{path}?job={dashboard.jobs[job]}", width)
        page.get_by_test_id("stMetric").first.wait_for()
        page.wait_for_timeout(1000)
        assert page.evaluate(CUT) == []
        for label in ("Latency", "Quality"):
            for box in page.get_by_role("combobox", name=label, exact=True).all():
                assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 1


@each_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_and_nothing_needs_webgl(
    visit: Visit, dashboard: "Dashboard", path: str, scheme: str
) -> None:
    page = visit(f"{path}?job={dashboard.jobs['finished']}", scheme=scheme)
    expect(page.locator(".js-plotly-plot")).to_have_count(CHARTS.get(path, 0))
    page.wait_for_timeout(1500)
    assert page.locator(".gl-container canvas, .gl-canvas").count() == 0
    found = Axe().run(page).response["violations"]
    assert [(fault["id"], node["html"]) for fault in found for node in fault["nodes"]] == []


def _newest(dashboard: "Dashboard", name: str) -> JobRecord:
    return next(job for job in dashboard.store.jobs() if job.name == name)


def test_a_job_is_submitted_watched_and_cancelled(visit: Visit, dashboard: "Dashboard", seed: SimpleNamespace) -> None:
    page = visit("/submit")
    page.get_by_label("Name").fill("from the browser")
    page.get_by_label("Name").press("Enter")
    page.get_by_label("Latency p95 (ms) at most").fill("14")
    page.get_by_label("Latency p95 (ms) at most").press("Enter")
    expect(page.get_by_test_id("stCode")).to_contain_text("max: 14.0")
    page.get_by_role("button", name="Submit the job").click()
    expect(page.get_by_text("Submitted: from the browser")).to_be_visible()
    job = _newest(dashboard, "from the browser")
    assert job.document["constraints"]["latency_p95_ms"] == {"max": 14.0}

    page.goto(f"{dashboard.address}/front?job={job.id}")
    expect(page.get_by_text("Waiting for the first measurement.")).to_be_visible()
    seed.drive(dashboard.store, job.id, seed.Scenario(trials=6))
    expect(page.get_by_text("6 maps shown")).to_be_visible()
    seed.record_next(dashboard.store, job.id)
    expect(page.get_by_text("7 maps shown")).to_be_visible()

    page.goto(dashboard.address)
    _choose_by_keyboard(page, "Open or change a job", "from the browser")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("Cancelled: from the browser")).to_be_visible()
    assert dashboard.store.job(job.id).state is JobState.CANCELLED
    assert len(dashboard.store.trials(job.id)) == 7


def _choose_by_keyboard(page: Page, label: str, text: str) -> None:
    box = page.get_by_role("combobox", name=label, exact=True)
    box.focus()
    page.keyboard.type(text)
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Enter")


def test_a_job_is_opened_by_keyboard_alone(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit("/")
    _choose_by_keyboard(page, "Open or change a job", dashboard.jobs["finished"])
    link = page.get_by_role("link", name="Open its front")
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Front", level=1).wait_for()
    assert _ids(page)["job"] == dashboard.jobs["finished"]


def test_a_slider_moved_by_keyboard_picks_again_and_is_in_the_link(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/front?job={dashboard.jobs['finished']}")
    fastest = page.get_by_text(re.compile("^Fastest.*: trial "))
    before = fastest.inner_text()
    slider = page.get_by_role("slider", name="Accuracy at least")
    slider.focus()
    page.keyboard.press("PageUp")
    expect(fastest).not_to_have_text(before)
    after = fastest.inner_text()
    assert "limit_accuracy" in _ids(page)
    shared = visit(page.url.removeprefix(dashboard.address))
    expect(shared.get_by_text(re.compile("^Fastest.*: trial "))).to_have_text(after)


def test_points_layers_and_zooms_need_no_mouse(visit: Visit, dashboard: "Dashboard") -> None:
    job_id = dashboard.jobs["finished"]
    page = visit(f"/front?job={job_id}")
    ticks = page.locator(".js-plotly-plot").first.locator(".xtick text")
    ticks.first.wait_for()
    whole = ticks.all_text_contents()
    _press_by_keyboard(page, "Zoom to the front")
    expect(ticks).not_to_have_text(whole)
    _press_by_keyboard(page, "Show all again")
    expect(ticks).to_have_text(whole)
    _choose_by_keyboard(page, "Open a map", "int8_dynamic")
    page.get_by_role("heading", name="Map", level=1).wait_for()
    assert _ids(page)["trial"] == "3"

    _choose_by_keyboard(page, "Layers shown", "layer.2")
    page.wait_for_url(re.compile("block=4"))
    bars = page.locator(".js-plotly-plot").nth(1).locator(".barlayer .trace").last.locator(".point")
    expect(bars).to_have_count(6)

    page.goto(f"{dashboard.address}/layers?job={job_id}")
    _choose_by_keyboard(page, "Layer", "layer.3.intermediate")
    page.wait_for_url(re.compile(r"layer=encoder\.layer\.3\.intermediate\.dense"))
    kept = dashboard.store.job(job_id).description.calibration.histograms["encoder.layer.3.intermediate.dense"]  # type: ignore[union-attr]
    expect(page.get_by_text(f"{sum(kept.counts):,} values that the layer saw")).to_be_visible()


def _press_by_keyboard(page: Page, label: str) -> None:
    page.get_by_role("button", name=label).focus()
    page.keyboard.press("Enter")


def test_zoom_and_limits_survive_new_trials(visit: Visit, dashboard: "Dashboard", seed: SimpleNamespace) -> None:
    job_id = seed.record_job(dashboard.store, "0f00cafe", seed.SCENARIOS["one_trial"], datetime.now(UTC))
    for _ in range(7):
        seed.record_next(dashboard.store, job_id)
    page = visit(f"/front?job={job_id}")
    expect(page.get_by_text("8 maps shown")).to_be_visible()
    page.get_by_role("slider", name="Weight memory at most").focus()
    page.keyboard.press("PageDown")
    limit = page.get_by_role("slider", name="Weight memory at most").get_attribute("aria-valuenow")
    chart = page.locator(".js-plotly-plot").first
    shown = chart.locator(".xtick text")
    whole = shown.all_text_contents()
    chart.hover()
    chart.locator(".modebar-btn").first.click()
    box = chart.locator(".nsewdrag").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"], steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="Show all again")).to_be_visible()
    expect(shown).not_to_have_text(whole)
    ticks = shown.all_text_contents()
    seed.record_next(dashboard.store, job_id)
    expect(page.get_by_text("9 maps shown")).to_be_visible()
    expect(shown).to_have_text(ticks)
    assert page.get_by_role("slider", name="Weight memory at most").get_attribute("aria-valuenow") == limit
    shared = visit(page.url.removeprefix(dashboard.address))
    expect(shared.locator(".xtick text").first).to_have_text(ticks[0])
    page.get_by_role("button", name="Show all again").click()
    expect(page.get_by_role("button", name="Show all again")).to_be_hidden()
    expect(shown).not_to_have_text(ticks)


def test_two_maps_are_compared_from_a_link(visit: Visit, dashboard: "Dashboard") -> None:
    job_id = dashboard.jobs["finished"]
    first, second = dashboard.store.trials(job_id)[8:10]
    differing = sum(first.choices[layer] != second.choices[layer] for layer in first.choices)
    page = visit(f"/map?job={job_id}&trial=9")
    page.get_by_role("link", name="Compare with another map").click()
    page.get_by_role("heading", name="Diff", level=1).wait_for()
    assert _ids(page)["second"] == "9"
    page.goto(f"{dashboard.address}/diff?job={job_id}&first=8&second=9")
    expect(page.get_by_text(f"{differing} of 40 layers differ")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(2)


def test_jobs_on_other_hardware_are_compared_with_a_warning(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit(f"/compare?jobs={dashboard.jobs['finished']}&jobs={dashboard.jobs['elsewhere']}")
    expect(page.get_by_text("These jobs were measured differently: batch sizes, repeats, hardware.")).to_be_visible()
    names = page.locator(".js-plotly-plot .legendtext")
    expect(names).to_have_count(2)
    assert any("edge box" in name for name in names.all_text_contents())


def test_filters_are_in_the_link(visit: Visit, dashboard: "Dashboard") -> None:
    page = visit("/")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("button", name="running", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Only running")).to_be_visible()
    page.get_by_label("Search", exact=True).fill("nightly")
    page.get_by_label("Search", exact=True).press("Enter")
    page.wait_for_url(re.compile("search=nightly"))
    shared = visit(page.url.removeprefix(dashboard.address))
    expect(shared.get_by_label("Search", exact=True)).to_have_value("nightly")
    assert _ids(shared)["state"] == "running"
