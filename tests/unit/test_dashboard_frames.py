import runpy
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.job_spec import JobSpec
from autotune.metrics import Constraint, Figure
from autotune.store.clock import now
from autotune.store.records import JobRecord, JobState, TrialRecord
from dashboard import frames
from search_spaces.choice import CHOICES

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "browser" / "seed.py")))

SPEC = JobSpec.parse(
    {
        "name": "a job",
        "task": {"name": "minilm-lee"},
        "constraints": {"latency_p95_ms": {"max": 22.0}, "accuracy_drop": {"max": 0.02}},
        "search": {"trials": 40},
    }
)
LIMITS = SPEC.constraints.constraints()


@pytest.fixture(scope="module")
def trials() -> list[TrialRecord]:
    return [result.trial for result in islice(seed.results(SPEC, "0001"), 30)]


def _job(**changes: object) -> JobRecord:
    at = now() - timedelta(minutes=10)
    job = JobRecord(
        id="0001",
        name="a\njob",
        task="minilm-lee",
        spec=SPEC.dump(),
        state=JobState.RUNNING,
        created_at=at,
        updated_at=at,
        elapsed_s=60.0,
        description=seed.describe(),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def test_a_row_says_everything_about_a_job(trials: list[TrialRecord]) -> None:
    summary = frames.JobSummary(job=_job(), trials=trials[:20], front_size=4)
    (row,) = frames.jobs_frame([summary], now()).to_dict("records")
    best = min(t.figures["latency_p50_ms"].value for t in trials[:20] if t.feasible)
    assert row["name"] == "a job"
    assert row["state"] == "▶ running"
    assert (row["progress"], row["trials"], row["left"], row["age"]) == (0.5, "20 of 40", "1 min", "10 min")
    assert row["best"] == f"Latency p50 {best:.1f} ms"
    assert row["front"] == 4
    assert "Xeon" in row["hardware"]


def test_a_job_without_trials_has_no_estimate_and_no_best() -> None:
    summary = frames.JobSummary(job=_job(description=None), trials=[], front_size=0)
    (row,) = frames.jobs_frame([summary], now()).to_dict("records")
    assert (row["left"], row["hardware"], row["best"]) == ("-", "-", "-")


def test_time_left_ends_with_the_time_limit_and_with_the_job() -> None:
    limited = SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"time_limit_s": 75.0})})
    assert frames.remaining_seconds(_job(), SPEC, 10) == pytest.approx(180.0)
    assert frames.remaining_seconds(_job(), limited, 10) == pytest.approx(15.0)
    assert frames.remaining_seconds(_job(), SPEC, 50) == 0.0
    assert frames.remaining_seconds(_job(state=JobState.FINISHED), SPEC, 10) is None


def test_best_feasible_follows_the_direction_of_the_metric(trials: list[TrialRecord]) -> None:
    feasible = [trial for trial in trials if trial.feasible]
    best = frames.best_feasible(trials, "accuracy")
    assert best is not None
    assert best.figures["accuracy"].value == max(t.figures["accuracy"].value for t in feasible)
    assert frames.best_feasible([t for t in trials if not t.feasible], "accuracy") is None


def test_full_precision_is_the_baseline_that_changes_nothing(trials: list[TrialRecord]) -> None:
    found = frames.full_precision(trials)
    assert found is not None
    assert found.label == "fp32"
    assert frames.full_precision(trials[1:]) is None
    assert frames.full_precision([replace(trials[0], figures={})]) is None


def test_broken_limits_are_named_with_figure_and_bound(trials: list[TrialRecord]) -> None:
    assert frames.misses_text(trials[0], LIMITS) == "latency p95 29.6 ms (limit 22.0 ms)"
    assert frames.misses_text(trials[1], LIMITS) == ""


def test_every_trial_is_one_row_with_its_figures(trials: list[TrialRecord]) -> None:
    frame = frames.trial_frame(trials, {1, 3}, LIMITS)
    assert frame["number"].tolist() == [trial.number for trial in trials]
    assert frame["number"][frame["on_front"]].tolist() == [1, 3]
    assert frame["latency_p95_ms"][0] == trials[0].figures["latency_p95_ms"].value
    assert frame["latency_p95_ms_low"][0] == trials[0].figures["latency_p95_ms"].low
    assert frame["accuracy_low"].isna().all()
    assert frame["latency_p99_ms"].isna().all()
    assert frames.trial_frame([], (), LIMITS).empty


def test_points_without_both_figures_are_left_out_with_the_reason(trials: list[TrialRecord]) -> None:
    frame = frames.drawn(frames.trial_frame(trials, (), LIMITS), "latency_p50_ms", "accuracy")
    missing = frames.left_out(trials, set(frame["number"]))
    reasons = dict(zip(missing["number"], missing["why"], strict=True))
    assert len(frame) + len(missing) == len(trials)
    assert reasons[10] == "Failed, its worker died: worker died with signal 9"
    assert reasons[12].startswith("Ruled out before it was measured in full: accuracy_drop")


def test_too_many_points_keep_the_front_the_baselines_and_the_newest(trials: list[TrialRecord]) -> None:
    frame = frames.trial_frame(trials, {8}, LIMITS)
    kept = frames.drawn(frame, "latency_p50_ms", "accuracy", most=9)["number"].tolist()
    assert kept == [0, 1, 2, 3, 4, 5, 8, 28, 29]


def test_a_relative_drop_becomes_an_accuracy() -> None:
    drop, latency = LIMITS
    (limit,) = frames.limits_on("accuracy", LIMITS, 0.8)
    assert limit.value == pytest.approx(0.8 - drop.limit * 0.8)
    assert not limit.at_most
    assert frames.limits_on("accuracy", LIMITS, None) == ()
    (line,) = frames.limits_on("latency_p95_ms", LIMITS, None)
    assert (line.value, line.at_most, line.label) == (latency.limit, True, "limit 22.0 ms")
    floor = Constraint(metric="accuracy", limit=0.7, at_most=False)
    assert [limit.at_most for limit in frames.limits_on("accuracy", [floor], None)] == [False]


def test_layers_are_listed_in_execution_order_with_what_they_take(trials: list[TrialRecord]) -> None:
    description = seed.describe()
    frame = frames.layer_frame(description, trials[3].choices)
    assert frame["layer"].tolist() == [layer.name for layer in description.layers]
    assert dict(zip(frame["layer"], frame["choice"], strict=True)) == trials[3].choices
    assert frame["flops_share"].sum() == pytest.approx(1.0)
    pooler = frame.iloc[-1]
    assert pooler["refused"] == "every quantized choice: never ran on the example batch"
    assert frame["refused"][0].startswith("int8_static: an embedding has no input activations")


def test_letters_tell_activation_modes_apart() -> None:
    letters = {name: frames.letter(choice) for name, choice in CHOICES.items()}
    assert letters["int8_static"] == "S"
    assert letters["int8_dynamic"] == "D"
    assert letters["int8_weight_only"] == letters["int4_weight_only"] == "W"
    assert letters["fp32"] == letters["bf16"] == letters["fp16"] == ""


def test_a_figure_without_an_interval_stays_without_one(trials: list[TrialRecord]) -> None:
    bare = replace(trials[0], figures={"latency_p50_ms": Figure(value=3.0)})
    frame = frames.trial_frame([bare], (), LIMITS)
    assert frame["latency_p50_ms"][0] == 3.0
    assert frame["latency_p50_ms_high"].isna().all()
