"""The recommended map: the fastest within the limits, in words that say what it gains."""

import dataclasses
from typing import Any

import pytest

from autotune.jobs.recommendation import default_pick, recommendation, recommended
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from workers.timing.estimates import Figure


def spec(limited: bool = True) -> JobSpec:
    constraints = {"accuracy_drop": {"max": 0.01}} if limited else {}
    return JobSpec.parse(
        {
            "name": "x",
            "task": {"name": "t"},
            "objectives": ["latency_p50_ms", "divergence"],
            "constraints": constraints,
        }
    )


def trial(
    number: int, ratio: float, drop: float, memory: float, label: str | None = None, **changes: Any
) -> TrialRecord:
    values = {
        "latency_p50_ms": 20.0 * ratio, "latency_ratio": ratio, "accuracy_drop": drop, "accuracy": 0.8 * (1 - drop),
        "divergence": drop, "weight_memory_mib": memory,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.BASELINE if label else TrialKind.SEARCH, "label": label,
        "state": TrialState.COMPLETE, "choices": {"fc": str(number)}, "key": str(number),
        "figures": {name: Figure(value=value) for name, value in values.items()},
        "violations": {"accuracy_drop": drop / 0.01 - 1.0}, "finished_at": now(),
    }  # fmt: skip
    return TrialRecord(**fields | changes)


FULL = trial(0, 1.0, 0.0, 80.0, "fp32")
STATIC = trial(1, 0.4, 0.05, 20.0, "uniform int8_static")
DYNAMIC = trial(2, 0.8, 0.004, 20.0, "uniform int8_dynamic")
MIX = trial(3, 0.5, 0.002, 30.0)


def test_the_fastest_within_the_limits_is_recommended_else_the_knee() -> None:
    assert default_pick(spec()) == "fastest"
    assert default_pick(spec(limited=False)) == "knee"
    assert recommended([FULL, STATIC, DYNAMIC, MIX], spec()) == MIX
    assert recommended([STATIC], spec()) is None
    assert recommendation([STATIC], spec()) is None


def test_a_mix_is_compared_with_full_precision_and_the_fastest_uniform_map_within_the_limits() -> None:
    assert recommendation([FULL, STATIC, DYNAMIC, MIX], spec()) == (
        "Recommended: trial 3. 2.00x as fast as full precision, accuracy -0.20 %, 30.0 instead of 80.0 MiB. "
        "60 % faster than the fastest uniform map within the limits (uniform int8_dynamic)."
    )
    assert str(recommendation([FULL, STATIC, MIX], spec())).endswith("No uniform map was found within the limits.")


def test_a_uniform_map_may_be_the_best_answer() -> None:
    assert recommendation([FULL, DYNAMIC], spec()) == (
        "Recommended: trial 2 (uniform int8_dynamic). 1.25x as fast as full precision, accuracy -0.40 %, "
        "20.0 instead of 80.0 MiB. No measured mix within the limits is a better choice than this uniform map."
    )


def test_a_recipe_is_told_apart_from_uniform_maps() -> None:
    recipe = trial(1, 0.6, 0.004, 10.0, "recipe int8_dynamic")
    assert str(recommendation([FULL, DYNAMIC, recipe, MIX], spec())).endswith(
        "20 % faster than the fastest default recipe within the limits (recipe int8_dynamic)."
    )
    assert str(recommendation([FULL, DYNAMIC, recipe], spec())).endswith("a better choice than this default recipe.")


def test_full_precision_may_be_the_best_answer() -> None:
    assert recommendation([FULL, STATIC], spec()) == (
        "Recommended: full precision. No other measured map within the limits is a better choice."
    )


def test_a_search_that_measured_nothing_but_full_precision_says_so() -> None:
    again = trial(1, 1.0, 0.0, 80.0, kind=TrialKind.FINAL, key=FULL.key)
    for trials in ([FULL], [FULL, again]):
        assert recommendation(trials, spec()) == (
            "Recommended: full precision. No other map was measured; a longer search measures more."
        )


def test_a_final_measurement_counts_instead_of_the_first() -> None:
    again = trial(4, 0.5, 0.003, 30.0, kind=TrialKind.FINAL, key=MIX.key)
    assert "trial 4. 2.00x as fast as full precision, accuracy -0.30 %" in str(
        recommendation([FULL, MIX, again], spec())
    )


@pytest.mark.parametrize("missing", ["latency_ratio", "accuracy_drop"])
def test_nothing_is_said_without_the_figures(missing: str) -> None:
    figures = {name: figure for name, figure in MIX.figures.items() if name != missing}
    assert recommendation([FULL, trial(3, 0.5, 0.002, 30.0, figures=figures)], spec()) is None


def test_the_workload_of_the_objectives_decides_which_map_is_the_fastest() -> None:
    def with_prefill(one: TrialRecord, ratio: float) -> TrialRecord:
        figures = {"prefill_latency_p50_ms": Figure(value=10.0 * ratio), "prefill_latency_ratio": Figure(value=ratio)}
        return dataclasses.replace(one, figures={**one.figures, **figures})

    document = spec().dump() | {"objectives": ["prefill_latency_p50_ms", "divergence"]}
    trials = [with_prefill(FULL, 1.0), with_prefill(DYNAMIC, 0.5), with_prefill(MIX, 0.8)]
    assert recommendation(trials, JobSpec.parse(document)) == (
        "Recommended: trial 2 (uniform int8_dynamic). 2.00x as fast as full precision (time to first token p50), "
        "accuracy -0.40 %, 20.0 instead of 80.0 MiB. No measured mix within the limits is a better choice than this "
        "uniform map."
    )


@pytest.mark.parametrize(
    ("ratio", "comparison"),
    [
        (0.55, "10 % faster than"),
        (0.504, "1 % faster than"),
        (0.502, "About as fast as"),
        (0.498, "About as fast as"),
        (0.496, "Slower than"),
    ],
)
def test_a_difference_below_half_a_percent_is_none(ratio: float, comparison: str) -> None:
    rival = trial(1, ratio, 0.001, 20.0, "uniform bf16")
    # Its median is higher, though its ratio to the passes of full precision beside it may be lower.
    figures = {**rival.figures, "latency_p50_ms": Figure(value=10.1)}
    found = recommendation([FULL, dataclasses.replace(rival, figures=figures), MIX], spec())
    assert str(found).endswith(f"{comparison} the fastest uniform map within the limits (uniform bf16).")


def test_the_fastest_uniform_map_is_the_rival_and_limits_are_named_only_if_there_are_some() -> None:
    slower = trial(5, 0.9, 0.001, 40.0, "uniform fp16")
    assert str(recommendation([FULL, slower, DYNAMIC, MIX], spec())).endswith("(uniform int8_dynamic).")
    found = str(recommendation([FULL, slower, DYNAMIC, MIX], spec(limited=False)))
    assert "within the limits" not in found


def test_a_map_of_another_backend_says_where_it_runs() -> None:
    other = dataclasses.replace(trial(4, 0.4, 0.001, 30.0), backend="openvino")
    uniform = dataclasses.replace(trial(5, 0.5, 0.001, 20.0, "uniform int8_static"), backend="onnxruntime")
    assert recommendation([FULL, DYNAMIC, uniform, other], spec()) == (
        "Recommended: trial 4 on openvino. 2.50x as fast as full precision, accuracy -0.10 %, 30.0 instead of 80.0 "
        "MiB. 25 % faster than the fastest uniform map within the limits (uniform int8_static on onnxruntime)."
    )
    full_there = dataclasses.replace(trial(6, 0.3, 0.0, 80.0, "fp32"), backend="onnxruntime", key="0onnxruntime")
    found = recommendation([FULL, DYNAMIC, full_there], spec())
    assert found is not None
    assert found.startswith("Recommended: trial 6 (fp32) on onnxruntime. 3.33x as fast as full precision")
