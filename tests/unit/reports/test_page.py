"""The review report: the same bytes from the same records, no resource from elsewhere, no name that is markup."""

import re
import runpy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autotune.jobs.front import pick
from autotune.jobs.records import TrialKind
from autotune.markup import html, tag
from autotune.reports.page import Review, build
from autotune.store.in_memory import MemoryStore
from dashboard.charts.palette import PRECISIONS
from workers.measurement import LatencySamples
from workers.recovered import RecoveryReport, RecoverySettings
from workers.timing.estimates import Figure

SEED = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))
RECOVERY = RecoveryReport(
    method="blocks", settings=RecoverySettings(), seconds=46.2, samples=48, validation_samples=16, before=3.2e-2,
    after=8.7e-3, layers=("a", "b"), kept={}, sha256="5" * 64, nbytes=9,
)  # fmt: skip
STYLE = Path(__file__).parents[3] / "autotune" / "reports" / "style.css"


def review(scenario: str, how: str = "knee") -> Review:
    store = MemoryStore()
    job = store.job(SEED.seed(store, scenario)[scenario])
    trials = store.trials(job.id)
    picked = pick(trials, how, job.spec.objectives)
    front, latency = store.fronts(job.id)[-1], store.latency(job.id, picked.number)
    return Review(job=job, trials=tuple(trials), front=front, picked=picked, how=how, latency=latency)


@pytest.fixture(scope="module")
def finished() -> Review:
    return review("finished")


class Seen(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if attributes.get("class") == name]


def test_equal_records_give_equal_bytes(finished: Review) -> None:
    copy = replace(finished, job=replace(finished.job), trials=tuple(replace(trial) for trial in finished.trials))
    assert build(finished) == build(copy)


def test_page_needs_nothing_but_itself(finished: Review) -> None:
    page = build(finished)
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in Seen(page).elements)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in Seen(page).elements)
    assert "url(" not in page
    assert "@import" not in page


def test_names_are_text_whatever_they_hold() -> None:
    # The attacker names the job, its layers, its task and its owner.
    hostile = review("hostile")
    evil = "\"'><script>alert(1)</script>"
    picked = replace(
        hostile.picked, choices={f"{name}{evil}": choice for name, choice in hostile.picked.choices.items()}
    )
    job = replace(hostile.job, name=SEED.HOSTILE, task=evil, owner=evil)
    labelled = tuple(replace(trial, label=evil) for trial in hostile.trials)
    seen = Seen(build(replace(hostile, job=job, picked=picked, trials=labelled)))
    assert {"script", "img"}.isdisjoint(tag for tag, _ in seen.elements)
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)
    assert seen.text.count(SEED.HOSTILE) == 2, "in the title and in the heading"
    assert evil in seen.text
    assert any(evil in (attributes.get("title") or "") for _, attributes in seen.elements)


def test_markup_is_escaped_once() -> None:
    assert tag("p", "a & b", tag("b", "<"), title='"') == '<p title="&quot;">a &amp; b<b>&lt;</b></p>'
    assert html(html("&")) == "&amp;"


def test_front_is_drawn_and_the_pick_ringed(finished: Review) -> None:
    seen = Seen(build(finished))
    assert len(seen.of_class("front")) == len(finished.front.members) > 2
    (ring,) = seen.of_class("pick")
    assert (ring["cx"], ring["cy"]) in {(dot["cx"], dot["cy"]) for dot in seen.of_class("front")}


def test_reader_learns_why_and_against_what(finished: Review) -> None:
    text = Seen(build(finished)).text
    assert f"Trial {finished.picked.number} was picked because it is the knee of the front" in text
    assert "All constraints are satisfied." in text
    full, mine = (trial.figures["latency_p50_ms"].value for trial in (finished.full_precision, finished.picked))
    assert f"{100 * (mine / full - 1):+.1f}\u00a0%" in text
    assert finished.job.description is not None
    for recorded in ("seed 0", finished.job.description.fingerprint, finished.picked.key, "not recorded"):
        assert recorded in text


def test_a_recovered_map_says_where_its_figures_come_from(finished: Review) -> None:
    picked = replace(finished.picked, kind=TrialKind.RECOVERED, parent=41, recovery=RECOVERY)
    text = Seen(build(replace(finished, picked=picked))).text
    assert (
        "Recovered from trial 41: 2 layers have learned weights. On 16 calibration samples that they were not learned "
        "from, the divergence went from 3.2e-02 to 8.7e-03, in 46 s. Speed and memory are those of trial 41."
    ) in text
    assert "Recovered" not in Seen(build(finished)).text


def test_corrected_biases_are_told(finished: Review) -> None:
    spec = {**finished.job.document, "calibration": {"bias_correction": True}}
    assert "minmax, corrected biases, " in Seen(build(replace(finished, job=replace(finished.job, document=spec)))).text
    assert "corrected biases" not in Seen(build(finished)).text


def test_broken_constraints_are_told(finished: Review) -> None:
    picked = replace(finished.picked, violations={"latency_p95_ms": 0.5, "accuracy_drop": -0.1})
    text = Seen(build(replace(finished, picked=picked, how="7"))).text
    assert "its number was given" in text
    assert "It does not satisfy all constraints." in text
    assert "broken" in text


def test_latency_histogram_counts_every_pass(finished: Review) -> None:
    values = np.concatenate([np.linspace(1.0, 2.0, 99), [50.0]])
    samples = LatencySamples(batch_size=1, candidate_ms=values, reference_ms=values * 2)
    seen = Seen(build(replace(finished, latency=(samples,))))
    assert len(seen.of_class("bar")) == 40
    assert len(seen.of_class("mark")) == 3, "p50, p90 and p95; 100 passes have no p99"
    heights = [float(bar["height"] or 0) for bar in seen.of_class("bar")]
    assert all(height >= 0.0 for height in heights)
    assert heights[-1] > 0.0, "the slowest passes are in the last bar"


def test_what_was_not_measured_is_left_out(finished: Review) -> None:
    open_ended = finished.picked.figures | {"latency_p95_ms": Figure(value=14.0, low=13.0)}
    text = Seen(build(replace(finished, latency=(), picked=replace(finished.picked, figures=open_ended)))).text
    assert "No latencies were recorded" in text
    assert "13.0 to open" in text


def test_colours_are_those_of_the_dashboard() -> None:
    rules = dict(re.findall(r"^\.(\w+) \{ background: (#\w+); color: #\w+; \}$", STYLE.read_text(), re.MULTILINE))
    assert rules == {precision.value: fill.lower() for precision, (fill, _) in PRECISIONS.items()}
