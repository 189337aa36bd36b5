import json
import re
import runpy
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import streamlit as st
import yaml
from streamlit.testing.v1 import AppTest

from autotune.jobs.lifecycle import with_fields
from autotune.jobs.records import Artifact, ArtifactKind, JobStage, JobState, TrialKind, TrialResult
from autotune.jobs.spec import JobSpec
from autotune.store.base import Store
from autotune.store.open import open_store
from dashboard import queries
from dashboard.tables.layers import Gap
from dashboard.views import diff
from workers.recovered import RecoveryReport, RecoverySettings, digest

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

large_job = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/dashboard/large_job.py")))

APP = Path(__file__).parents[3] / "dashboard" / "app.py"
#: One page alone; what it leads to says that it was reached.
PAGE = """
import streamlit as st
import yaml
from dashboard.widgets.bar import bar
from dashboard.widgets.page_parts import guarded
from dashboard.views import {page}
here = st.Page(lambda: {page}.show(*[there] * {pages}), title="Here", default=True)
there = st.Page(lambda: st.text("there: " + str(st.query_params.to_dict())), title="There", url_path="there")
current = st.navigation([here, there], position="hidden")
bar([here, there], current, of_job=[here])
guarded(current.run)()
"""
#: Page -> how many pages it leads to.
PAGES = {"jobs": 1, "front": 1, "candidate": 2, "diff": 1, "layers": 0, "compare": 0, "submit": 1, "system": 0}
each_page = pytest.mark.parametrize("name", PAGES)
#: Pages that show nothing without jobs.
each_reading_page = pytest.mark.parametrize("name", sorted({*PAGES} - {"submit", "system"}))
SHAPES = (
    "finished",
    "running",
    "one_trial",
    "infeasible",
    "failed",
    "failed_late",
    "paused",
    "queued",
    "cancelled",
    "hostile",
    "unprobed",
    "elsewhere",
    "runtimes",
    "language",
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard') / 'jobs.db'}"
    store = open_store(url)
    jobs = seed.seed(store, *SHAPES)
    store.close()
    yield url, jobs
    st.cache_resource.clear()


@pytest.fixture
def page(database: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    url, jobs = database
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)

    def show(name: str, job: str | None = None, trial: int | None = None, **link: str | list[str]) -> AppTest:
        app = AppTest.from_string(PAGE.format(page=name, pages=PAGES[name]), default_timeout=120)
        if job is not None:
            app.query_params["job"] = jobs.get(job, job)
        if trial is not None:
            app.query_params["trial"] = str(trial)
        for parameter, value in link.items():
            app.query_params[parameter] = value
        return app.run()

    return show


def _texts(app: AppTest) -> str:
    kinds = (app.title, app.header, app.info, app.warning, app.error, app.text, app.caption, app.code, app.markdown)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def test_all_shapes_are_seeded() -> None:
    assert set(SHAPES) == set(seed.SCENARIOS)


@each_page
@pytest.mark.parametrize("shape", SHAPES)
def test_every_page_shows_every_shape_of_job(page, name: str, shape: str) -> None:  # type: ignore[no-untyped-def]
    app = page(name, shape)
    assert not app.exception
    assert len(app.title) == 1
    assert "cannot be read" not in _texts(app)


def test_many_latencies_are_a_list_and_few_are_buttons(page) -> None:  # type: ignore[no-untyped-def]
    few, many = page("front", "finished"), page("front", "language")
    assert [control.label for control in few.segmented_control] == ["Latency", "Quality"]
    assert not many.segmented_control
    latency, quality = (next(box for box in many.selectbox if box.label == label) for label in ("Latency", "Quality"))
    assert (latency.value, quality.value) == ("prefill_latency_p50_ms", "divergence")
    assert {"Latency p50", "Time per output token p95"} <= set(latency.options)
    assert quality.options == ["Accuracy", "Divergence", "Accuracy on shifted data", "Divergence on shifted data"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield a database with a job of 5,000 trials over 300 layers, and the job. Most are copies: that is quick."""
    path = tmp_path_factory.mktemp("large") / "jobs.db"
    store = open_store(f"sqlite:///{path}")
    job = large_job.write_job(store, trials=20, layers=300)
    store.close()
    renamed = {"number": "number + 15 * step", "map_key": "map_key || step"}
    with closing(sqlite3.connect(path)) as database, database:
        for table in ("trials", "measurements"):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            columns = ", ".join(renamed.get(name, name) for name in names)
            database.execute(
                "WITH RECURSIVE steps(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM steps WHERE step < 332) "
                f"INSERT INTO {table} SELECT {columns} FROM {table}, steps WHERE number BETWEEN 5 AND 19"
            )
    yield f"sqlite:///{path}", job
    st.cache_resource.clear()


@each_page
def test_every_page_shows_a_job_of_5000_trials_over_300_layers(
    name: str, large: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DATABASE", large[0])
    app = AppTest.from_string(PAGE.format(page=name, pages=PAGES[name]), default_timeout=120)
    app.query_params["job"] = large[1]
    app.run()
    assert not app.exception
    assert "cannot be read" not in _texts(app)
    if name == "front":
        assert "5000 of 20 trials" in _texts(app)
        assert "500 maps shown" in _texts(app)
        assert app.expander[-1].label == "Candidates not drawn: 4500"
    if name == "candidate":
        assert len(_box(app, "Candidate").options) == 5000
        assert len(app.dataframe[0].value) == 300


@each_reading_page
def test_without_a_database_every_page_says_how_to_begin(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DATABASE", f"sqlite:///{tmp_path / 'none.db'}")
    app = AppTest.from_string(PAGE.format(page=name, pages=PAGES[name]), default_timeout=120).run()
    assert not app.exception
    assert "autotune run job.yaml" in _texts(app)
    assert f"Database: sqlite:///{tmp_path / 'none.db'}" in _texts(app)
    assert not (tmp_path / "none.db").exists()


@each_reading_page
def test_without_jobs_every_page_says_how_to_begin(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    open_store(url).close()
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    app = AppTest.from_string(PAGE.format(page=name, pages=PAGES[name]), default_timeout=120).run()
    assert not app.exception
    assert app.info[0].value == "There are no jobs yet."
    assert "autotune run job.yaml" in _texts(app)


def test_a_password_in_the_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_DATABASE", "postgresql+psycopg://tuner:canary@127.0.0.1:1/jobs")
    app = AppTest.from_string(PAGE.format(page="jobs", pages=1), default_timeout=120).run()
    assert not app.exception
    assert app.warning[0].value == "The jobs cannot be read."
    assert "Database: postgresql+psycopg://127.0.0.1:1/jobs" in _texts(app)
    assert "canary" not in _texts(app)


def test_the_whole_app_opens_on_the_jobs(database, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("AUTOTUNE_DATABASE", database[0])
    app = AppTest.from_file(str(APP), default_timeout=120).run()
    assert not app.exception
    assert app.title[0].value == "Jobs"
    assert len(app.dataframe[0].value) == len(SHAPES)


def test_a_job_can_be_opened_without_a_mouse(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("jobs")
    _box(app, "Open or change a job").set_value(database[1]["running"]).run()
    (link,) = [link for link in app.get("page_link") if link.proto.label == "Open its front"]
    assert database[1]["running"] in link.proto.query_string


def test_a_map_can_be_opened_without_a_mouse(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    _box(app, "Open a map").set_value(3).run()
    assert app.text[0].value == f"there: {{'job': '{database[1]['finished']}', 'trial': '3'}}"


def test_the_front_names_the_nearest_map_when_nothing_is_feasible(page) -> None:  # type: ignore[no-untyped-def]
    warning = page("front", "infeasible").warning[0].value
    assert "No measured map meets every limit" in warning
    assert r"uniform int8\_static\: latency p95 10\.5 ms\, limit 4\.00 ms" in warning


def test_the_front_begins_with_the_recommended_map_and_its_gains(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    assert app.header[0].value == r"Recommended\: trial 20"
    assert {card.label: (card.value, card.delta) for card in app.metric} == {
        "Speed": ("2.68x", "10.1 ms, was 26.9 ms"),
        "Accuracy": ("0.7112", "-1.40 %"),
        "Weight memory": ("23.0 MiB", "-73.5 %"),
        "Divergence": ("1.6e-03", "0: equal outputs"),
    }
    assert r"11 \% faster than the fastest uniform map within the limits \(uniform int8\_dynamic\)" in _texts(app)
    infeasible = page("front", "infeasible")
    assert not infeasible.metric
    assert "Recommended" not in _texts(infeasible)


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (JobStage(name="Measuring", done=3, total=16), r"Measuring 3\/16 · 17 of 60 trials · about 3 min left"),
        (JobStage(name="Probing", remaining_s=40.0), r"Probing · 0\:40 left · 17 of 60 trials"),
        (
            JobStage(name="Searching", done=17, total=60, detail="latency 4/10", remaining_s=192.0),
            r"Searching 17\/60 · latency 4\/10 · 3\:12 left",
        ),
    ],
)
def test_a_running_job_shows_its_progress_and_stage_once(own, stage, text) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    store.record_stage(jobs["running"], stage, epoch=0)
    app = AppTest.from_string(PAGE.format(page="front", pages=1), default_timeout=120)
    app.query_params["job"] = jobs["running"]
    (bar,) = app.run().get("progress")
    assert bar.proto.value == 28
    assert bar.proto.text == text


def test_the_table_has_the_front_first_with_speed_and_change_of_accuracy(page) -> None:  # type: ignore[no-untyped-def]
    table = page("front", "finished").dataframe[0].value
    first, standing = table.iloc[0], table["standing"]
    assert (first["name"], first["standing"]) == ("trial 20", "on the front, fastest, smallest")
    on_front = standing.str.startswith("on the front")
    assert on_front.tolist() == sorted(on_front, reverse=True)
    assert table["latency_p50_ms"][on_front].is_monotonic_increasing
    assert first["speedup"] == pytest.approx(2.68, abs=0.01)
    assert first["change"] == pytest.approx(-1.40, abs=0.01)


def test_the_table_under_the_front_has_the_points_drawn(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    drawn = [point[1].split("<br>")[0] for trace in figure["data"] for point in trace.get("customdata") or ()]
    table = app.dataframe[0].value
    assert sorted(drawn) == sorted(f"<b>{name}</b>" for name in table["name"])
    assert f"{len(table)} maps shown" in _texts(app)


def test_the_front_says_what_failed_and_what_stays_in_fp32(page) -> None:  # type: ignore[no-untyped-def]
    captions = " ".join(caption.value.replace("\\", "") for caption in page("front", "finished").caption)
    assert re.search(r"\d+ of \d+ maps failed: \d+ x .*; autotune show \w+ \d+\.", captions)
    assert "Stays in fp32: " in captions
    assert "pooler.dense (never ran on the example batch)" in captions


def test_failures_are_listed_with_their_reason(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    assert len(app.dataframe) == 1  # the list is sent when it is opened
    app.session_state["not_drawn"] = True
    app.run()
    missing = app.dataframe[1].value
    assert "its worker died" in missing["why"].iloc[0]
    assert app.expander[0].label == f"Candidates not drawn: {len(missing)}"


@pytest.mark.parametrize("shape", ["failed", "failed_late", "paused", "cancelled"])
def test_a_stopped_job_says_how_to_go_on(page, database, shape: str) -> None:  # type: ignore[no-untyped-def]
    app = page("front", shape)
    assert app.code[0].value == f"autotune resume {database[1][shape]}"
    error = seed.SCENARIOS[shape].error
    assert error is None or error in _texts(app)


def test_a_job_that_fell_silent_says_so(page, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert "No news" not in _texts(page("front", "running"))
    monkeypatch.setattr("dashboard.widgets.page_parts.now", lambda: datetime.now(UTC) + timedelta(hours=5))
    app = page("front", "running")
    assert app.warning[0].value.startswith("No news for 5 h")
    assert app.code[0].value.startswith("autotune resume")


def test_only_a_live_job_can_be_paused(page) -> None:  # type: ignore[no-untyped-def]
    assert len(page("front", "running").toggle) == 1
    assert len(page("front", "finished").toggle) == 0


def test_a_link_to_a_job_that_is_gone_says_so_and_shows_no_other(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "![x](https://evil.invalid)")
    assert r"Not found: this database has no job \!\[x\]\(https" in app.error[0].value
    assert not app.get("plotly_chart")
    assert _box(app, "Job").value is None
    app = _box(app, "Job").set_value(database[1]["finished"]).run()
    assert app.query_params["job"] == database[1]["finished"]
    assert not app.error


@pytest.mark.parametrize(("name", "parameter"), [("candidate", "trial"), ("diff", "first"), ("diff", "second")])
def test_a_link_to_a_trial_that_is_gone_says_so_and_shows_no_other(page, name: str, parameter: str) -> None:  # type: ignore[no-untyped-def]
    app = page(name, "finished", **{parameter: "999"})
    assert app.error[0].value == "Not found: this job has no trial 999. Choose another trial above."
    assert not app.get("plotly_chart")
    label = "Candidate" if parameter == "trial" else f"{parameter.capitalize()} map"
    app = _box(app, label).set_value("3").run()
    assert app.query_params[parameter] == "3"
    assert not app.error
    assert app.get("plotly_chart")


def test_a_link_to_a_block_or_layer_that_is_gone_says_so(page) -> None:  # type: ignore[no-untyped-def]
    assert "has no block 99" in page("candidate", "finished", 3, block="99").error[0].value
    assert "has no layer no" in page("layers", "finished", layer="no").error[0].value


def test_another_job_starts_with_its_own_trial(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("candidate", "finished", 20)  # the other job has eight trials
    _box(app, "Job").set_value(database[1]["hostile"]).run()
    assert not app.exception
    assert not app.warning
    assert app.query_params["job"] == database[1]["hostile"]


def test_hostile_names_are_never_markup(page) -> None:  # type: ignore[no-untyped-def]
    for name in PAGES:
        app = page(name, "hostile")
        shown = "\n".join(str(element.value) for kind in (app.markdown, app.caption, app.title) for element in kind)
        assert "![x]" not in shown
        assert not any(element.allow_html for kind in (app.markdown, app.caption) for element in kind)


def test_the_map_page_leads_with_figures_against_full_precision(page) -> None:  # type: ignore[no-untyped-def]
    metrics = {metric.label: metric for metric in page("candidate", "finished", 3).metric}
    assert list(metrics) == ["Speed", "Accuracy", "Weight memory", "Divergence"]
    assert metrics["Accuracy"].value == "0.7137"
    assert metrics["Weight memory"].delta.startswith("-")


def test_the_map_page_sums_up_the_map_above_the_strip(page) -> None:  # type: ignore[no-untyped-def]
    texts = _texts(page("candidate", "finished", 24)).replace("\\", "")
    assert "layers stay in bf16" in texts
    assert "mostly output.dense" in texts or "most often" in texts
    assert re.search(r"latency p95 14\.4 ms \(14\.2 to 14\.7 ms, -51\.2 %\); peak memory 31\.6 MiB", texts)


def test_the_map_page_lists_weights_that_are_in_no_layer(page) -> None:  # type: ignore[no-untyped-def]
    assert r"embeddings\.rotary \(no quantized kernel" in _texts(page("candidate", "finished"))


def test_a_failed_candidate_says_why_and_cannot_be_exported(page) -> None:  # type: ignore[no-untyped-def]
    app = page("candidate", "finished", 10)
    assert "its worker died" in app.error[0].value
    assert "worker died with signal 9" in _texts(app)
    assert "Only a measured map can be exported" in _texts(app)
    assert not app.get("download_button")


def _box(app: AppTest, label: str):  # type: ignore[no-untyped-def]
    (box,) = [box for box in app.selectbox if box.label == label]
    return box


def _slider(app: AppTest, label: str):  # type: ignore[no-untyped-def]
    (slider,) = [slider for slider in app.slider if slider.label == label]
    return slider


def test_sliders_start_at_the_jobs_limits_and_pick_again_at_once(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    floor = _slider(app, "Accuracy at least")
    assert floor.value == pytest.approx(0.98 * 0.7213)
    before = [text for text in _texts(app).splitlines() if text.startswith("**Fastest")]
    app = floor.set_value(0.7185).run()
    assert not app.exception
    table = app.dataframe[0].value
    assert table["misses"].str.contains("accuracy").sum() == (table["accuracy"] < 0.7185).sum() > 5
    after = [text for text in _texts(app).splitlines() if text.startswith("**Fastest")]
    assert before != after
    app = _slider(app, "Latency p50 at most").set_value(1.0).run()
    assert "No measured map meets these limits" in _texts(app)


def test_the_end_of_a_slider_is_no_limit(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    floor = _slider(app, "Accuracy at least")
    app = floor.set_value(floor.min).run()
    assert not app.dataframe[0].value["misses"].str.contains("accuracy").any()


def test_a_block_is_shown_alone_and_stays_in_the_link(page) -> None:  # type: ignore[no-untyped-def]
    app = page("candidate", "finished", 3)
    (chooser,) = [box for box in app.selectbox if box.label == "Layers shown"]
    assert chooser.options[:3] == ["All 40 layers", "1: embeddings (3)", "2: layer.0 (6)"]
    app = chooser.set_value("2").run()
    assert app.query_params["block"] == "2"
    figure = json.loads(app.get("plotly_chart")[1].proto.spec)
    assert len(figure["data"][-1]["x"]) == 6


def test_without_probes_the_map_says_what_is_not_known(page) -> None:  # type: ignore[no-untyped-def]
    app = page("candidate", "unprobed", 3)
    assert "this job did not probe its layers" in _texts(app)
    assert "latency_ms" not in app.dataframe[0].value
    assert "latency_ms" in page("candidate", "finished", 3).dataframe[0].value


def test_a_map_comes_with_the_code_that_applies_it(page, database) -> None:  # type: ignore[no-untyped-def]
    job = database[1]["finished"]
    code = page("candidate", "finished", 3).code[1].value
    assert f'autotune.load_map("map-{job}-3.json").apply(model)' in code


def test_a_recovered_map_says_so_and_comes_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    with closing(open_store(url)) as store:
        job = seed.seed(store, "hostile")["hostile"]
        parent = next(t for t in store.trials(job) if t.figures and "int8_static" in t.choices.values())
        layer = next(name for name, choice in parent.choices.items() if choice == "int8_static")
        learned = Artifact(sha256=digest(b"learned"), kind=ArtifactKind.LEARNED_WEIGHTS, data=b"learned")
        report = RecoveryReport(
            method="blocks", settings=RecoverySettings(), seconds=46.0, samples=48, validation_samples=16,
            before=3.2e-2, after=8.7e-3, layers=(layer,), kept={}, sha256=learned.sha256, nbytes=7,
        )  # fmt: skip
        recovered = replace(parent, number=50, kind=TrialKind.RECOVERED, key="r", parent=parent.number, recovery=report)
        store.record([TrialResult(trial=recovered, artifacts=(learned,))], epoch=0)
    for name in PAGES:
        app = AppTest.from_string(PAGE.format(page=name, pages=PAGES[name]), default_timeout=120)
        app.query_params["job"], app.query_params["trial"] = job, "50"
        assert not app.run().exception, name
        if name == "candidate":
            shown = _texts(app).replace("\\", "")
            assert f"Recovered from trial {parent.number}: 1 layer has learned weights." in shown
            labels = [button.proto.label for button in app.get("download_button")]
            assert labels == ["Download the map (JSON)", "Download its learned weights, to be kept beside the map"]
    assert queries.artifact(learned.sha256) == b"learned"


def test_a_diff_shows_only_what_differs_and_what_explains_it(page) -> None:  # type: ignore[no-untyped-def]
    app = page("diff", "finished", first="8", second="9")
    figures, layers = (element.value for element in app.dataframe)
    assert (layers["first"] != layers["second"]).all()
    assert f"{len(layers)} of 40 layers differ" in _texts(app)
    assert "Latency p50" in figures["metric"].tolist()
    assert len(app.get("plotly_chart")) == 2
    assert r"as measured\; the layers explain" in _texts(app)
    assert "A curve fitted" in _texts(app)


def test_a_gap_within_the_measurement_noise_is_called_that() -> None:
    gap = Gap(measured=-0.1, predicted=-0.3, noise=0.2)
    assert diff._sentence("Latency (ms)", gap, "latency_p50_ms").startswith(
        "Latency (ms): -0.100 ms as measured, within measurement noise"
    )
    gap = Gap(measured=-1.0, predicted=-0.9, noise=0.2)
    assert "and the rest is within measurement noise" in diff._sentence("Latency (ms)", gap, "latency_p50_ms")
    gap = Gap(measured=-1.0, predicted=0.5, noise=0.2)
    assert "and -1.50 ms is not explained" in diff._sentence("Latency (ms)", gap, "latency_p50_ms")


def test_a_diff_starts_at_full_precision_and_the_knee(page) -> None:  # type: ignore[no-untyped-def]
    app = page("diff", "finished")
    assert (app.query_params["first"], app.query_params["second"]) == ("0", "24")


def test_a_diff_of_a_map_with_itself_says_so(page) -> None:  # type: ignore[no-untyped-def]
    assert "Both maps make the same choices." in _texts(page("diff", "finished", first="3", second="3"))


def test_a_diff_without_probes_explains_nothing(page) -> None:  # type: ignore[no-untyped-def]
    app = page("diff", "unprobed", first="2", second="3")
    assert "this job did not probe its layers" in _texts(app)
    assert not app.get("plotly_chart")


def test_the_layers_page_draws_thirty_layers_until_asked_for_all(page) -> None:  # type: ignore[no-untyped-def]
    app = page("layers", "finished")
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert len(figure["layout"]["yaxis"]["ticktext"]) == 30
    app = app.toggle[0].set_value(True).run()
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert len(figure["layout"]["yaxis"]["ticktext"]) == 39  # the pooler can only stay as it is


def test_the_layers_page_says_what_is_missing(page) -> None:  # type: ignore[no-untyped-def]
    assert "this job did not probe its layers" in _texts(page("layers", "unprobed"))
    assert "No map is on the front: none meets every limit." in _texts(page("layers", "infeasible"))
    assert "have not described this job's model yet" in _texts(page("layers", "queued"))


def test_the_inputs_of_a_layer_are_shown_with_the_range_and_what_it_clips(page, database) -> None:  # type: ignore[no-untyped-def]
    app = _box(page("layers", "finished"), "Layer").set_value("encoder.layer.1.output.dense").run()
    assert app.query_params["layer"] == "encoder.layer.1.output.dense"
    calibration = seed.describe().calibration
    kept, chosen = (part["encoder.layer.1.output.dense"] for part in (calibration.histograms, calibration.ranges))
    figure = json.loads(app.get("plotly_chart")[-1].proto.spec)
    assert len(figure["data"][0]["x"]) == 64
    assert [line["x0"] for line in figure["layout"]["shapes"]] == [chosen.low, chosen.high]
    assert f"which clips {100 * kept.clipped:.2g} % of the values" in _texts(app)


def test_a_job_calibrated_before_histograms_were_kept_says_so(page) -> None:  # type: ignore[no-untyped-def]
    assert "calibrated before histograms were recorded" in _texts(page("layers", "unprobed"))
    app = page("candidate", "unprobed", 3)
    assert "calibrated before histograms were recorded" in _texts(app)
    assert "clipped" not in app.dataframe[0].value
    assert "clips" not in app.get("plotly_chart")[1].proto.spec


def test_the_map_shows_what_ranges_clip(page) -> None:  # type: ignore[no-untyped-def]
    app = page("candidate", "finished", 3)
    clipped = app.dataframe[0].value["clipped"]
    assert clipped.dropna().gt(0).all()
    assert clipped.isna().sum() == 3  # embeddings have no range
    assert "Share of the inputs that the calibrated range clips" in app.get("plotly_chart")[1].proto.spec


def test_the_map_names_the_kernel_of_each_layer(page) -> None:  # type: ignore[no-untyped-def]
    table = page("candidate", "finished", 3).dataframe[0].value.set_index("layer")
    kernels = seed.describe().kernels
    for layer, row in table.iterrows():
        assert row["kernel"] == kernels.get(layer, {}).get(row["choice"], "-")


def test_the_front_is_zoomed_into_and_out_by_buttons(page) -> None:  # type: ignore[no-untyped-def]
    app = page("front", "finished")
    whole = json.loads(app.get("plotly_chart")[0].proto.spec)["layout"]["xaxis"]["range"]
    app = _press(app, "Zoom to the front")
    closer = json.loads(app.get("plotly_chart")[0].proto.spec)["layout"]["xaxis"]["range"]
    assert closer[1] - closer[0] < 0.8 * (whole[1] - whole[0])
    assert app.query_params["zoom"].startswith("latency_p50_ms,accuracy,")
    assert "Zoom to the front" not in [button.label for button in app.button]
    app = _press(app, "Show all again")
    assert json.loads(app.get("plotly_chart")[0].proto.spec)["layout"]["xaxis"]["range"] == whole


def test_jobs_are_compared_with_a_warning_if_measured_differently(page, database) -> None:  # type: ignore[no-untyped-def]
    jobs = database[1]
    app = page("compare", jobs=[jobs["finished"], jobs["elsewhere"]])
    assert not app.exception
    assert r"measured differently\: batch sizes\, repeats\, hardware\." in app.warning[0].value
    assert app.dataframe[0].value["setting"].tolist() == ["Batch sizes", "Repeats", "Hardware"]
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert len(figure["data"]) == 2
    alike = page("compare", jobs=[jobs["finished"], jobs["running"]])
    assert alike.success[0].value == "All of these jobs were measured in the same way."


def test_a_comparison_can_be_chosen_and_linked(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("compare")
    assert len(app.pills[0].value) == 2  # the two newest
    app = app.pills[0].set_value([database[1]["finished"]]).run()
    assert database[1]["finished"] in app.query_params["jobs"]
    assert "Choose at least two jobs" in app.info[0].value


def test_a_job_without_a_feasible_map_is_named_in_the_comparison(page, database) -> None:  # type: ignore[no-untyped-def]
    jobs = database[1]
    app = page("compare", jobs=[jobs["finished"], jobs["infeasible"]])
    assert "has no feasible map" in app.info[0].value


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, dict[str, str]]]:
    """Yield a database that the test may change, and its jobs."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    store = open_store(url)
    yield store, seed.seed(store, "queued", "running", "finished")
    store.close()


def _jobs_page(job: str) -> AppTest:
    app = AppTest.from_string(PAGE.format(page="jobs", pages=1), default_timeout=120).run()
    return _box(app, "Open or change a job").set_value(job).run()


def _press(app: AppTest, label: str) -> AppTest:
    (button,) = [button for button in app.button if button.label == label]
    assert not button.disabled
    app = button.click().run()
    assert not app.exception
    return app


def test_jobs_are_filtered_by_state_task_and_text(own) -> None:  # type: ignore[no-untyped-def]
    app = AppTest.from_string(PAGE.format(page="jobs", pages=1), default_timeout=120).run()
    app = app.pills[0].set_value(["running", "queued"]).run()
    assert set(app.dataframe[0].value["name"]) == {"Waiting", "MiniLM, nightly"}
    app = app.text_input[0].set_value("NIGHTLY").run()
    assert app.dataframe[0].value["name"].tolist() == ["MiniLM, nightly"]
    app = app.text_input[0].set_value("nothing").run()
    assert "No jobs match these filters" in app.info[0].value


def test_a_waiting_job_is_paused_and_resumed(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    app = _press(_jobs_page(jobs["queued"]), "Pause")
    assert store.job(jobs["queued"]).state is JobState.PAUSED
    assert app.success[0].value.startswith(r"Paused\: Waiting")
    assert [button.label for button in app.button if button.disabled] == ["Pause"]
    _press(app, "Resume")
    assert store.job(jobs["queued"]).state is JobState.QUEUED


def test_a_job_is_cancelled_after_a_second_look(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    _press(_jobs_page(jobs["running"]), "Cancel the job")
    job = store.job(jobs["running"])
    assert job.state is JobState.CANCELLED
    assert len(store.trials(job.id)) == 17


def test_a_job_is_cloned(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    _press(_jobs_page(jobs["finished"]), "Clone")
    newest, *others = store.jobs()
    assert len(others) == 3
    assert newest.spec == store.job(jobs["finished"]).spec
    assert newest.state is JobState.QUEUED


def test_a_budget_is_changed(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    app = _jobs_page(jobs["running"])
    fields = {field.label: field for field in app.number_input}
    fields["Trials"].set_value(90)
    fields["Time limit (s)"].set_value(600.0)
    fields["Priority"].set_value(5)
    _press(app, "Change")
    job = store.job(jobs["running"])
    assert (job.spec.search.trials, job.spec.search.time_limit_s, job.priority) == (90, 600.0, 5)


def test_what_the_state_forbids_is_said_in_words(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    app = _jobs_page(jobs["queued"])
    store.change_job(jobs["queued"], with_fields(0, state=JobState.FINISHED))  # meanwhile, by somebody else
    app = _press(app, "Pause")
    assert app.error[0].value == "The action failed."
    assert f"job {jobs['queued']} is finished already, so it cannot be paused" in _texts(app)


def _submit_page() -> AppTest:
    return AppTest.from_string(PAGE.format(page="submit", pages=1), default_timeout=120).run()


def _field(app: AppTest, kind: str, label: str):  # type: ignore[no-untyped-def]
    (field,) = [field for field in getattr(app, kind) if field.label == label]
    return field


def test_a_form_is_submitted_as_the_job_file_it_shows(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    app = _submit_page()
    assert "Measured\\: fp32 29\\.6 ms\\, uniform int8\\_static 10\\.5 ms" in _texts(app)
    _field(app, "text_input", "Name").set_value("from the page")
    _field(app, "number_input", "Latency p95 (ms) at most").set_value(14.0)
    app = _field(app, "number_input", "Trials").set_value(25).run()
    shown = app.code[0].value
    assert "max: 14.0" in shown
    app = _press(app, "Submit the job")
    (job,) = [job for job in store.jobs() if job.id not in jobs.values()]
    assert job.spec == JobSpec.parse(yaml.safe_load(shown))
    assert (job.name, job.state, job.served) == ("from the page", JobState.QUEUED, True)
    assert app.success[0].value.startswith(r"Submitted\: from the page")


def test_metrics_that_not_every_task_has_are_offered_on_demand(own) -> None:  # type: ignore[no-untyped-def]
    app = _submit_page()
    objectives = _field(app, "button_group", "Objectives, two or three")
    assert "Time per output token p50 (ms)" not in objectives.options
    objectives.set_value(["latency_p95_ms", "divergence"]).run()
    app = _field(app, "button_group", "The task also measures").set_value(["decode"]).run()
    objectives = _field(app, "button_group", "Objectives, two or three")
    assert "Time per output token p50 (ms)" in objectives.options
    assert objectives.value == ["latency_p95_ms", "divergence"]
    app = _field(app, "number_input", "Time per output token p95 (ms) at most").set_value(30.0).run()
    assert "decode_latency_p95_ms" in app.code[0].value


def test_a_load_is_asked_for_with_response_times(own) -> None:  # type: ignore[no-untyped-def]
    app = _submit_page()
    assert "Requests per second" not in [field.label for field in app.number_input]
    app = _field(app, "button_group", "The task also measures").set_value(["queued"]).run()
    app = _field(app, "number_input", "Response time under load p95 (ms) at most").set_value(30.0).run()
    app = _field(app, "number_input", "Requests per second").set_value(2.5).run()
    assert not app.error
    spec = JobSpec.parse(yaml.safe_load(app.code[0].value))
    assert spec.measurement.requests_per_second == 2.5


def test_a_form_with_mistakes_cannot_be_submitted(own) -> None:  # type: ignore[no-untyped-def]
    app = _submit_page()
    app = _field(app, "number_input", "Latency p99 (ms) at most").set_value(14.0).run()
    assert app.error[0].value == "This job cannot be submitted."
    assert "latency_p99_ms needs measurement.repeats >= 500, but got 100" in _texts(app)
    (button,) = [button for button in app.button if button.label == "Submit the job"]
    assert button.disabled
    app = _field(app, "text_area", "Rules for layers").set_value("- {").run()
    assert "layer rules: not valid YAML" in _texts(app)


def test_a_job_can_be_submitted_before_there_is_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    _press(_submit_page(), "Submit the job")
    store = open_store(url, read_only=True)
    assert [job.name for job in store.jobs()] == ["my-first-job"]
    store.close()


def test_a_job_file_is_uploaded_and_submitted(own) -> None:  # type: ignore[no-untyped-def]
    store, jobs = own
    app = _submit_page()
    app = app.segmented_control[0].set_value("with a job file").run()
    assert not [button for button in app.button if button.label == "Submit the job"]
    app = app.file_uploader[0].upload("job.yaml", b"name: x\ntask: {name: minilm-lee}\nsurch: 1", "text/yaml").run()
    assert "surch: unknown key; did you mean 'search'?" in _texts(app)
    app = app.file_uploader[0].upload("job.yaml", b"name: uploaded\ntask: {name: minilm-lee}", "text/yaml").run()
    _press(app, "Submit the job")
    assert [job.name for job in store.jobs() if job.id not in jobs.values()] == ["uploaded"]


def test_the_system_page_lists_queue_errors_and_events(page, database) -> None:  # type: ignore[no-untyped-def]
    app = page("system")
    queue, events = (element.value for element in app.dataframe)
    assert [name.split(" (")[0] for name in queue["job"]] == ["MiniLM, nightly", "Just begun", "Waiting"]
    assert "The job is cancelled." in events["message"].tolist()
    assert seed.SCENARIOS["failed"].error in _texts(app)
    assert "Database: sqlite:///" in _texts(app)
    assert "quant-autotune" in _texts(app)


def test_the_system_page_needs_no_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    open_store(url).close()
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    app = AppTest.from_string(PAGE.format(page="system", pages=0), default_timeout=120).run()
    assert [info.value for info in app.info] == [
        "No jobs are queued or running.",
        "No job has failed.",
        "There are no events yet.",
    ]


def test_a_map_says_which_backend_runs_it(page) -> None:  # type: ignore[no-untyped-def]
    assert "runs on onnxruntime" in _texts(page("candidate", "runtimes", trial=2))
    assert "runs on cpu" in _texts(page("candidate", "runtimes", trial=3))
    table = page("front", "runtimes").dataframe[0].value
    assert {name.endswith(" on onnxruntime") for name in table["name"]} == {True, False}


def test_maps_of_different_backends_have_figures_but_no_explanation(page) -> None:  # type: ignore[no-untyped-def]
    alike = _texts(page("diff", "runtimes", first="2", second="5"))
    assert "What explains the gap" in alike or "The contribution of each layer is unknown" in alike
    apart = _texts(page("diff", "runtimes", first="3", second="5"))
    assert "The first map runs on cpu, the second on onnxruntime" in apart
    assert "What explains the gap" not in apart
    assert "Figures" in apart


def test_what_a_backend_is_worth_stands_below_the_front_and_beside_other_jobs(page, database) -> None:  # type: ignore[no-untyped-def]
    url, jobs = database
    store = open_store(url)
    full = store.trials(jobs["runtimes"], numbers=[0])[0]
    where = dict(full.environment) | {"backend": "onnxruntime"}
    ratio = full.figures["latency_ratio"]
    figures = {**full.figures, "latency_ratio": ratio.scaled(0.5)}
    twin = replace(full, number=90, backend="onnxruntime", key="twin", environment=where, figures=figures)
    store.record([TrialResult(trial=twin)], epoch=0)
    store.close()
    told = "The same map on several backends"
    speed = 1.0 / ratio.value
    assert f"{told}: fp32: {speed:.2f}x on cpu, {2 * speed:.2f}x on onnxruntime." in _texts(
        page("front", "runtimes")
    ).replace("\\", "")
    beside = _texts(page("compare", jobs=[jobs["finished"], jobs["runtimes"]])).replace("\\", "")
    assert f"{told} (MiniLM on two runtimes" in beside
    assert beside.count(told) == 1
