import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from autotune.jobs.records import JobRecord, JobState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from dashboard.charts.compare import compare_figure
from dashboard.tables import job_comparison
from dashboard.tables.trials import judged, trial_frame

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

SPEC = JobSpec.parse({"name": "a job", "task": {"name": "minilm-lee"}})
JOB = JobRecord(
    id="0001",
    name="a job",
    task="minilm-lee",
    document=SPEC.dump(),
    state=JobState.FINISHED,
    created_at=now(),
    updated_at=now(),
    description=seed.describe(),
)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    trials = [result.trial for result in islice(seed.results(SPEC, "0001"), 30)]
    return judged(trial_frame(trials), (), SPEC.objectives)


def test_fronts_are_relative_to_full_precision(frame: pd.DataFrame) -> None:
    front = job_comparison.relative_front(frame, "latency_p50_ms", "accuracy")
    full = frame.iloc[0]
    row = frame[frame["number"] == front["number"][0]].iloc[0]
    assert front["x"][0] == row["latency_p50_ms"] / full["latency_p50_ms"]
    assert front["y"][0] == row["accuracy"] / full["accuracy"]
    assert front["memory"][0] == row["weight_memory_mib"] / full["weight_memory_mib"]
    assert front["x"].is_monotonic_increasing
    assert front["y"].is_monotonic_increasing


def test_divergence_is_relative_already(frame: pd.DataFrame) -> None:
    front = job_comparison.relative_front(frame, "latency_p50_ms", "divergence")
    assert set(front["y"]) <= set(frame["divergence"])
    assert front["y"].is_monotonic_decreasing


def test_without_full_precision_nothing_is_relative(frame: pd.DataFrame) -> None:
    assert job_comparison.relative_front(frame.iloc[1:], "latency_p50_ms", "accuracy").empty


def test_settings_that_differ_are_listed() -> None:
    changes = {"measurement": {"batch_sizes": [8, 1], "repeats": 300}, "calibration": {"bias_correction": True}}
    spec = JobSpec.parse({**SPEC.dump(), **changes})
    environment = replace(JOB.description.environment, threads=4, versions={"torch": "2.14.0"})
    other = replace(JOB, document=spec.dump(), description=replace(JOB.description, environment=environment))
    found = job_comparison.differences({"one": job_comparison.protocol(JOB), "other": job_comparison.protocol(other)})
    assert found.to_dict("records") == [
        {"setting": "Batch sizes", "one": "1", "other": "8, 1"},
        {"setting": "Repeats", "one": "100", "other": "300"},
        {"setting": "Calibration", "one": "minmax, 99.99 %", "other": "minmax, 99.99 %, corrected biases"},
        {"setting": "Threads", "one": "2", "other": "4"},
        {"setting": "Version of torch", "one": "2.13.0", "other": "2.14.0"},
    ]
    assert job_comparison.differences({"one": job_comparison.protocol(JOB), "two": job_comparison.protocol(JOB)}).empty
    assert "batch sizes, repeats" in job_comparison.warning(found["setting"].tolist())


def test_every_job_has_a_colour_a_dash_and_a_symbol(frame: pd.DataFrame) -> None:
    front = job_comparison.relative_front(frame, "latency_p50_ms", "accuracy")
    fronts = {f"<b>job</b> {n}": front for n in range(6)} | {}
    figure = compare_figure(fronts, x="latency_p50_ms", y="accuracy", revision="r")
    styles = {(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(styles) == len({color for color, _, _ in styles}) == len({dash for _, dash, _ in styles}) == 6
    assert figure.data[0].name == "&lt;b&gt;job&lt;/b&gt; 0"
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert not compare_figure({"none": front[:0]}, x="latency_p50_ms", y="divergence", revision="r").data
