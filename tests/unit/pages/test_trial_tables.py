import runpy
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from autotune.jobs.budget import left_s
from autotune.jobs.front import compute_front, pick, ties
from autotune.jobs.records import EventRecord, JobRecord, JobStage, JobState, Order, TrialKind, TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from dashboard.tables import jobs as job_tables
from dashboard.tables import trials as trial_tables
from workers.timing.estimates import Figure

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

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
        document=SPEC.dump(),
        state=JobState.RUNNING,
        created_at=at,
        updated_at=at,
        elapsed_s=60.0,
        description=seed.describe(),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def test_a_row_says_everything_about_a_job(trials: list[TrialRecord]) -> None:
    front = [trial for trial in trials[:20] if trial.feasible][-4:]
    summary = job_tables.JobSummary(job=_job(), searched=20, front=front)
    (row,) = job_tables.jobs_frame([summary], now()).to_dict("records")
    best = min(front, key=lambda trial: trial.figures["latency_p50_ms"].value).figures
    assert row["name"] == "a job"
    assert row["state"] == "▶ running"
    assert row["stage"] == "-"
    assert (row["progress"], row["trials"], row["left"], row["age"]) == (0.5, "20 of 40", "1 min", "10 min")
    assert row["speed"] == f"{1 / best['latency_ratio'].value:.2f}x"
    assert row["accuracy"] == f"{-100 * best['accuracy_drop'].value:+.2f} %"
    assert row["memory"] == f"{best['weight_memory_mib'].value:.1f} MiB"
    assert row["front"] == 4
    assert "Xeon" in row["hardware"]


def test_a_row_says_what_the_driver_does_and_expects() -> None:
    stage = JobStage(name="Searching", done=20, total=40, detail="latency\n4/10", remaining_s=240.0)
    summary = job_tables.JobSummary(job=_job(stage=stage), searched=20, front=[])
    (row,) = job_tables.jobs_frame([summary], now()).to_dict("records")
    assert row["stage"] == "Searching 20/40 · latency 4/10 · 4:00 left"
    assert row["left"] == "4 min"


def test_a_job_without_trials_has_no_estimate_and_no_best() -> None:
    summary = job_tables.JobSummary(job=_job(description=None), searched=0, front=[])
    (row,) = job_tables.jobs_frame([summary], now()).to_dict("records")
    assert (row["left"], row["hardware"], row["speed"]) == ("-", "-", "-")


def test_time_left_ends_with_the_time_limit_and_with_the_job() -> None:
    limited = SPEC.model_copy(update={"search": SPEC.search.model_copy(update={"time_limit_s": 75.0})})
    assert left_s(_job(), SPEC, 10) == pytest.approx(180.0)
    assert left_s(_job(), limited, 10) == pytest.approx(15.0)
    assert left_s(_job(), SPEC, 50) == 0.0
    assert left_s(_job(state=JobState.FINISHED), SPEC, 10) is None


def test_gains_are_those_of_the_map_that_the_front_recommends(trials: list[TrialRecord]) -> None:
    front = [trial for trial in trials if trial.feasible][:6]
    unlimited = _job(document=SPEC.dump() | {"constraints": {}})
    summary = job_tables.JobSummary(job=unlimited, searched=30, front=front)
    (row,) = job_tables.jobs_frame([summary], now()).to_dict("records")
    knee = pick(front, "knee", SPEC.objectives).figures
    assert row["speed"] == f"{1 / knee['latency_ratio'].value:.2f}x"
    assert knee != min(front, key=lambda trial: trial.figures["latency_p50_ms"].value).figures
    (row,) = job_tables.jobs_frame([replace(summary, front=[])], now()).to_dict("records")
    assert (row["speed"], row["accuracy"], row["memory"]) == ("none feasible", "-", "-")


def test_full_precision_is_the_baseline_that_changes_nothing(trials: list[TrialRecord]) -> None:
    found = trial_tables.full_precision(trials)
    assert found is not None
    assert found.label == "fp32"
    assert trial_tables.full_precision(trials[1:]) is None
    assert trial_tables.full_precision([replace(trials[0], figures={})]) is None


def test_broken_limits_are_named_with_figure_and_bound(trials: list[TrialRecord]) -> None:
    assert trial_tables.misses_text(trials[0], LIMITS) == "latency p95 29.6 ms, limit 22.0 ms"
    assert trial_tables.misses_text(trials[1], LIMITS) == ""


def _judged(trials: list[TrialRecord], limits: Sequence[Constraint] = LIMITS) -> pd.DataFrame:
    return trial_tables.judged(trial_tables.trial_frame(trials), limits, SPEC.objectives)


def test_every_trial_is_one_row_with_its_figures(trials: list[TrialRecord]) -> None:
    frame = trial_tables.trial_frame(trials)
    assert frame["number"].tolist() == [trial.number for trial in trials]
    assert frame["latency_p95_ms"][0] == trials[0].figures["latency_p95_ms"].value
    assert frame["latency_p95_ms_low"][0] == trials[0].figures["latency_p95_ms"].low
    assert frame["accuracy_low"].isna().all()
    assert frame["latency_p99_ms"].isna().all()
    assert trial_tables.trial_frame([]).empty


def test_a_recovered_baseline_is_none(trials: list[TrialRecord]) -> None:
    recovered = replace(trials[1], number=30, kind=TrialKind.RECOVERED, parent=1)
    assert trials[1].label is not None
    frame = trial_tables.trial_frame([*trials, recovered])
    assert frame["baseline"].tolist() == [trial.label is not None for trial in trials] + [False]
    assert frame["name"].iloc[-1] == f"{trials[1].label}, recovered"


def test_under_the_jobs_limits_standing_is_what_the_driver_recorded(trials: list[TrialRecord]) -> None:
    frame = _judged(trials)
    front = compute_front(trials, SPEC.objectives)
    assert frame["number"][frame["on_front"]].tolist() == list(front.members)
    assert frame["feasible"].tolist() == [trial.feasible for trial in trials]


def test_other_limits_make_another_front(trials: list[TrialRecord]) -> None:
    tight = [Constraint(metric="latency_p50_ms", limit=10.4, at_most=True)]
    frame = _judged(trials, tight)
    assert 0 < frame["feasible"].sum() < len(trials)
    assert (frame["latency_p50_ms"][frame["feasible"]] <= 10.4).all()
    assert frame["on_front"].any()
    assert not (frame["on_front"] & ~frame["feasible"]).any()
    none = _judged(trials, [Constraint(metric="latency_p50_ms", limit=1.0, at_most=True)])
    assert not none["on_front"].any()
    assert not _judged([])["on_front"].any()


def test_ties_are_those_of_the_command_line(trials: list[TrialRecord]) -> None:
    frame = trial_tables.with_ties(_judged(trials), SPEC.objectives)
    members = compute_front(trials, SPEC.objectives).members
    found = frame["number"][frame["tie"]].tolist()
    assert set(found) == ties([trial for trial in trials if trial.number in members], SPEC.objectives)
    assert found, "the trials have ties"
    assert not trial_tables.with_ties(_judged([]), SPEC.objectives)["tie"].any()


def test_points_say_what_they_break(trials: list[TrialRecord]) -> None:
    strict = [*LIMITS, Constraint(metric="weight_memory_mib", limit=50.0, at_most=True)]
    misses = trial_tables.with_misses(_judged(trials, strict), strict)["misses"]
    assert misses[0] == "latency p95 29.6 ms, limit 22.0 ms; weight memory 86.6 MiB, limit 50.0 MiB"
    assert misses[1] == ""


def test_the_share_of_static_activations_leaves_out_the_rest(trials: list[TrialRecord]) -> None:
    frame = trial_tables.trial_frame(trials)
    assert frame["static"][2:4].tolist() == [1.0, 0.0]  # the uniform maps
    assert frame["static"][[0, 1, 4, 5]].isna().all()
    names = list(trials[20].choices.values())
    static, dynamic = names.count("int8_static"), names.count("int8_dynamic")
    assert frame["static"][20] == static / (static + dynamic)


def test_points_without_both_figures_are_left_out_with_the_reason(trials: list[TrialRecord]) -> None:
    frame = trial_tables.drawn(_judged(trials), "latency_p50_ms", "accuracy")
    missing = trial_tables.left_out(trials, set(frame["number"]))
    reasons = dict(zip(missing["number"], missing["why"], strict=True))
    assert len(frame) + len(missing) == len(trials)
    assert reasons[10] == "Failed, its worker died: worker died with signal 9"
    assert reasons[12].startswith("Ruled out before it was measured in full: accuracy_drop")


def test_too_many_points_keep_the_front_the_baselines_and_the_newest(trials: list[TrialRecord]) -> None:
    frame = trial_tables.trial_frame(trials).assign(on_front=[trial.number == 8 for trial in trials])
    kept = trial_tables.drawn(frame, "latency_p50_ms", "accuracy", most=9)["number"].tolist()
    assert kept == [0, 1, 2, 3, 4, 5, 8, 28, 29]


def test_too_many_points_are_thinned_where_they_cover_one_another(trials: list[TrialRecord]) -> None:
    crowd = [replace(trials[8], number=number, figures=trials[29].figures) for number in range(100, 150)]
    frame = trial_tables.trial_frame([*trials, *crowd]).assign(on_front=False)
    kept = trial_tables.drawn(frame, "latency_p50_ms", "accuracy", most=40)["number"]
    assert 149 in kept.tolist()
    assert (kept < 30).sum() > 20  # the newest alone would be the crowd


def test_a_limit_is_a_line_on_its_own_axis_only() -> None:
    (line,) = trial_tables.limits_on("latency_p95_ms", LIMITS)
    assert (line.value, line.at_most, line.label) == (22.0, True, "limit 22.0 ms")
    assert trial_tables.limits_on("latency_p50_ms", LIMITS) == ()
    floor = Constraint(metric="accuracy", limit=0.7, at_most=False)
    assert [limit.at_most for limit in trial_tables.limits_on("accuracy", [floor])] == [False]


def test_a_figure_without_an_interval_stays_without_one(trials: list[TrialRecord]) -> None:
    bare = replace(trials[0], figures={"latency_p50_ms": Figure(value=3.0)})
    frame = trial_tables.trial_frame([bare])
    assert frame["latency_p50_ms"][0] == 3.0
    assert frame["latency_p50_ms_high"].isna().all()


def test_figures_of_two_maps_say_whether_their_intervals_tell_them_apart(trials: list[TrialRecord]) -> None:
    rows = {row["metric"]: row for row in trial_tables.metrics_frame(trials[0], trials[3]).to_dict("records")}
    assert rows["Latency p50"]["first"].startswith("26.9 ms (26.5 to")
    assert rows["Latency p50"]["certain"] == "yes"
    assert rows["Weight memory"]["certain"] == "-"
    assert rows["Accuracy"]["change"] == "-1.1 %"
    assert rows["Accuracy drop, relative"]["change"] == "+1.06 points"
    assert rows["Divergence from full precision"]["change"] == "-"  # that of full precision is 0
    speed = rows["Latency p50 relative to full precision"]
    assert (speed["first"], speed["second"].split(" (")[0]) == ("1.00x as fast", "2.42x as fast")
    assert speed["change"].startswith("+141."), "of the speedups that are shown, not of the ratios"
    fourth = {row["metric"]: row for row in trial_tables.metrics_frame(trials[3], trials[2]).to_dict("records")}
    ratio = trials[2].figures["divergence"].value / trials[3].figures["divergence"].value
    assert fourth["Divergence from full precision"]["change"] == f"{ratio:.3g}x"
    same = trial_tables.metrics_frame(trials[0], trials[0])
    assert set(same["certain"]) == {"no", "-"}
    assert trial_tables.metrics_frame(trials[0], trials[10]).empty


def test_the_queue_is_in_the_order_in_which_jobs_are_taken() -> None:
    at = now()
    jobs = [
        _job(id="late", state=JobState.QUEUED, created_at=at),
        _job(id="early", state=JobState.QUEUED, created_at=at - timedelta(hours=1)),
        _job(id="urgent", state=JobState.QUEUED, priority=3, created_at=at),
        _job(id="held", driver="box:42:7:x", leased_until=at + timedelta(seconds=20), order=Order.CANCEL, served=True),
        _job(id="lost", driver="box:43:7:x", leased_until=at - timedelta(seconds=90), created_at=at),
        _job(id="done", state=JobState.FINISHED),
    ]
    frame = job_tables.queue_frame(jobs, at)
    assert [name.split("(")[1] for name in frame["job"]] == ["held)", "lost)", "urgent)", "early)", "late)"]
    held = frame.iloc[0]
    assert (held["state"], held["driver"], held["lease"]) == ("▶ running, to be cancelled", "box:42", "20 s left")
    assert (held["served"], held["workers"]) == ("a controller", "1 x shared CPUs")
    assert frame["lease"][1] == "expired 2 min ago"
    assert job_tables.queue_frame(jobs[-1:], at).empty


def test_jobs_are_selected_by_state_task_and_text() -> None:
    jobs = [_job(id="aa", name="Edge box"), _job(id="bb", name="Cloud", task="other", state=JobState.FAILED)]

    def ids(**wanted: object) -> list[str]:
        return [job.id for job in job_tables.selected(jobs, **{"states": (), "task": None, "text": "", **wanted})]

    assert ids() == ["aa", "bb"]
    assert ids(states=["failed"]) == ["bb"]
    assert ids(task="minilm-lee") == ["aa"]
    assert ids(text=" eDGE ") == ids(text="aa") == ["aa"]
    assert ids(states=["failed"], text="edge") == []


def test_events_carry_their_job_and_their_time() -> None:
    event = EventRecord(at=datetime(2026, 1, 5, 23, 30, tzinfo=UTC), kind="taken_over", message="a\nb")
    (row,) = job_tables.events_frame([(_job(), event)], None).to_dict("records")
    assert row == {"at": "5 Jan 2026, 23:30 UTC", "job": "a job (0001)", "kind": "taken_over", "message": "a b"}
