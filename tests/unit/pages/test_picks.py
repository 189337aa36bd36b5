import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from autotune.jobs.front import pick
from autotune.jobs.records import TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import OVERLOADED_MS, Constraint
from dashboard.tables.picks import Pick, merged, picks
from dashboard.tables.trials import drawn, judged, trial_frame
from dashboard.widgets import limit_sliders

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

SPEC = JobSpec.parse({"name": "a job", "task": {"name": "minilm-lee"}, "constraints": {"accuracy_drop": {"max": 0.02}}})
OWN = SPEC.constraints.constraints()


@pytest.fixture(scope="module")
def trials() -> list[TrialRecord]:
    return [result.trial for result in islice(seed.results(SPEC, "0001"), 40)]


@pytest.fixture(scope="module")
def frame(trials: list[TrialRecord]) -> pd.DataFrame:
    return trial_frame(trials)


def _picks(frame: pd.DataFrame, constraints: tuple[Constraint, ...] = OWN) -> list[Pick]:
    return picks(judged(frame, constraints, SPEC.objectives), "latency_p50_ms", "accuracy", SPEC.objectives)


def test_picks_are_those_of_the_command_line(trials: list[TrialRecord], frame: pd.DataFrame) -> None:
    fastest, smallest, knee = _picks(frame)
    assert fastest.number == pick(trials, "fastest", SPEC.objectives).number
    assert knee.number == pick(trials, "knee", SPEC.objectives).number
    least = pick(trials, "smallest", SPEC.objectives).figures["weight_memory_mib"].value
    assert trials[smallest.number].figures["weight_memory_mib"].value == least


def test_picks_of_the_same_map_are_one_with_both_reasons(frame: pd.DataFrame) -> None:
    fastest, smallest, knee = _picks(frame)
    one, other = merged([fastest, smallest, knee])
    assert one.title == "Fastest and smallest"
    assert one.reason == f"Fastest: {fastest.reason} Smallest: {smallest.reason}"
    assert other == knee
    assert [pick.title for pick in merged([replace(pick, number=1) for pick in (fastest, smallest, knee)])] == [
        "Fastest, smallest and knee"
    ]


def test_another_limit_picks_another_map(frame: pd.DataFrame) -> None:
    floor = Constraint(metric="accuracy", limit=0.7185, at_most=False)
    fastest, *_ = _picks(frame, (floor,))
    row = frame[frame["number"] == fastest.number].iloc[0]
    assert row["accuracy"] >= 0.7185
    assert row["latency_p50_ms"] == frame[frame["accuracy"] >= 0.7185]["latency_p50_ms"].min()
    assert fastest.number != _picks(frame)[0].number


def test_nothing_is_picked_beyond_the_limits(frame: pd.DataFrame) -> None:
    assert _picks(frame, (Constraint(metric="latency_p50_ms", limit=1.0, at_most=True),)) == []


def test_reasons_compare_with_full_precision_and_the_next_best(frame: pd.DataFrame) -> None:
    fastest, _, knee = _picks(frame)
    assert fastest.figures == "Latency p50 10.1 ms, accuracy 0.7112, weight memory 23.0 MiB"
    assert fastest.reason == (
        "62.5 % less than full precision. The runner-up is trial 14 with 10.1 ms, within the measurement uncertainty."
    )
    assert "% of the way to the best latency p50 and" in knee.reason
    assert knee.reason.endswith("maps on the front.")


def test_a_single_map_is_picked_for_everything(frame: pd.DataFrame) -> None:
    fastest, smallest, knee = _picks(frame.iloc[:1], ())
    assert {fastest.number, smallest.number, knee.number} == {0}
    assert fastest.reason == "Equal to full precision."
    assert knee.reason == "It is the only map on the front."


def test_the_scale_of_a_limit_holds_the_baselines_and_the_limit(frame: pd.DataFrame) -> None:
    scale = limit_sliders.scale_of("latency_p50_ms", frame, None)
    assert scale.low == 0.0
    assert scale.high == scale.loose == scale.start > frame["latency_p50_ms"][:6].max()
    assert limit_sliders.scale_of("latency_p50_ms", frame, 99.0).high > 99.0
    assert limit_sliders.scale_of("latency_p50_ms", frame.iloc[:20], None) == scale  # it stays put while trials come in


def test_what_is_overloaded_is_on_no_scale_and_not_drawn(frame: pd.DataFrame) -> None:
    metric = "queued_latency_p95_ms"
    loaded = frame.assign(**{metric: [1.1 * OVERLOADED_MS, *[40.0] * (len(frame) - 1)]})
    assert limit_sliders.scale_of(metric, loaded, None).high < 50.0
    assert limit_sliders.scale_of(metric, loaded.iloc[:1], 30.0).high > 30.0
    points = drawn(judged(loaded, (), (metric, "divergence")), metric, "divergence")
    assert 0 not in set(points["number"])
    assert len(points)


def test_the_scale_of_a_floor_ends_below_and_holds_the_floor(frame: pd.DataFrame) -> None:
    scale = limit_sliders.scale_of("accuracy", frame, None)
    assert scale.low == scale.loose == pytest.approx(0.9 * 0.7213, abs=scale.step)
    assert limit_sliders.scale_of("accuracy", frame, 0.3).low <= 0.3
    assert limit_sliders.scale_of("accuracy", frame, 0.9).high > 0.9
