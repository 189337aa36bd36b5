"""Objectives as numbers to minimise, the scale of their hypervolume, metrics and limits."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Constraint, Metric
from autotune.metrics.objectives import Objectives, minimised
from workers.timing.estimates import Figure

FULL = {
    "accuracy": 0.8, "accuracy_drop": 0.0, "divergence": 0.0, "latency_p50_ms": 10.0, "latency_p90_ms": 11.0,
    "latency_p95_ms": 12.0, "latency_p99_ms": 15.0, "latency_ratio": 1.0, "weight_memory_mib": 8.0,
    "peak_memory_mib": 20.0,
}  # fmt: skip
FULL |= {
    f"{name}_{key}": value
    for name in ("prefill", "decode", "request", "sampling")
    for key, value in FULL.items()
    if "latency" in key
}
FULL |= {f"queued_latency_p{percent}_ms": 2.0 * FULL[f"latency_p{percent}_ms"] for percent in (50, 90, 95, 99)}
#: What a map must not reach to be worth something.
WORTHLESS = {name: 1.1 * value for name, value in FULL.items()} | {
    "accuracy": 0.72, "accuracy_drop": 0.1, "divergence": 1.0
}  # fmt: skip
for values in (FULL, WORTHLESS):
    values |= {f"shifted_{key}": values[key] for key in ("accuracy", "accuracy_drop", "divergence")}
#: Metrics that a search can go by.
SEARCHABLE = {name: metric for name, metric in METRICS.items() if not metric.reported_only}
ALL = Objectives.named(tuple(SEARCHABLE))


def figures(values: Mapping[str, float]) -> dict[str, Figure]:
    return {name: Figure(value=value) for name, value in values.items()}


def test_better_is_smaller() -> None:
    objectives = Objectives.named(["accuracy", "latency_p95_ms", "divergence"])
    values = objectives.values(figures(FULL | {"divergence": 1e-3}))
    assert values == pytest.approx((-0.8, 12.0, -3.0))


@given(st.sampled_from(list(METRICS.values())), st.floats(0.0, 1e3), st.floats(0.0, 1e3))
def test_a_better_figure_is_never_a_larger_number(metric: Metric, one: float, other: float) -> None:
    better, worse = (max(one, other), min(one, other)) if metric.maximise else (min(one, other), max(one, other))
    assert minimised(metric, better) <= minimised(metric, worse)


def test_equal_outputs_count_as_almost_equal_ones() -> None:
    equal, almost, less = minimised(METRICS["divergence"], np.array([0.0, 1e-9, 1e-4]))
    assert np.isfinite(equal)
    assert equal == almost < less


@pytest.mark.parametrize("metric", SEARCHABLE.values(), ids=SEARCHABLE)
def test_an_array_is_minimised_like_its_values(metric: Metric) -> None:
    values = [0.0, 1e-4, 0.5, 20.0]
    assert minimised(metric, np.array(values)).tolist() == [float(minimised(metric, value)) for value in values]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_points_have_one_row_per_candidate(count: int) -> None:
    points = Objectives.named(["latency_p50_ms", "accuracy"]).points([figures(FULL)] * count)
    np.testing.assert_array_equal(points, np.array([[10.0, -0.8]] * count).reshape(count, 2))


def test_full_precision_costs_one() -> None:
    objectives = Objectives.named(["latency_p50_ms", "weight_memory_mib", "latency_ratio"])
    full = figures(FULL)
    np.testing.assert_allclose(objectives.normalise(objectives.points([full]), full), [[1.0, 1.0, 1.0]])


def test_a_tenth_of_the_accuracy_and_a_decade_of_divergence_count_one() -> None:
    objectives, full = Objectives.named(["accuracy", "accuracy_drop", "divergence"]), figures(FULL)
    worse = figures(FULL | {"accuracy": 0.72, "accuracy_drop": 0.2, "divergence": 1e-2})
    bad = figures(FULL | {"accuracy": 0.64, "accuracy_drop": 0.3, "divergence": 1e-1})
    points = objectives.normalise(objectives.points([worse, bad]), full)
    np.testing.assert_allclose(points[1] - points[0], 1.0)


@pytest.mark.parametrize("name", SEARCHABLE)
def test_the_reference_point_is_where_a_map_is_worth_nothing(name: str) -> None:
    objectives, full = Objectives.named([name]), figures(FULL)
    points = objectives.normalise(objectives.points([figures(WORTHLESS), full]), full)
    reference = objectives.reference_point(full)
    assert reference.shape == (1,)
    np.testing.assert_allclose(points[0], reference)
    assert points[1] < reference


@pytest.mark.parametrize(("accuracy", "worthless", "unit"), [(-2.0, -2.2, 0.2), (0.0, 0.0, 0.1), (0.8, 0.72, 0.08)])
def test_accuracies_below_zero_and_of_zero_have_a_scale(accuracy: float, worthless: float, unit: float) -> None:
    objectives, full = Objectives.named(["accuracy"]), figures({"accuracy": accuracy})
    np.testing.assert_allclose(objectives.reference_point(full), [-worthless / unit], atol=1e-12)
    np.testing.assert_allclose(objectives.normalise(np.array([[-1.0]]), full), [[-1.0 / unit]])


def test_a_front_has_a_scale_where_full_precision_is_overloaded() -> None:
    full = figures(FULL | {"queued_latency_p95_ms": 1.2 * OVERLOADED_MS})
    objectives = Objectives.named(["queued_latency_p95_ms"])
    points = objectives.points([full, figures({"queued_latency_p95_ms": 60.0})])
    reference = objectives.reference_point(full)
    # A request takes 10 ms in the median, so a server with little to spare has 300.
    np.testing.assert_allclose(objectives.normalise(points, full)[1], [60.0 / 300.0])
    np.testing.assert_allclose(reference, [1.1])
    assert objectives.normalise(points, full)[0] > reference


@given(st.floats(0.01, 100.0))
def test_the_scale_does_not_depend_on_the_machine(speed: float) -> None:
    slow = FULL | {name: speed * value for name, value in FULL.items() if name.endswith(("_ms", "_mib"))}
    expected = ALL.normalise(ALL.points([figures(FULL)]), figures(FULL))
    np.testing.assert_allclose(ALL.normalise(ALL.points([figures(slow)]), figures(slow)), expected)
    np.testing.assert_allclose(ALL.reference_point(figures(slow)), ALL.reference_point(figures(FULL)))


@pytest.mark.parametrize(("name", "metric"), METRICS.items())
def test_a_metric_has_its_own_name_with_its_unit(name: str, metric: Metric) -> None:
    assert metric.name == name
    assert {"ms", "mib"} & set(name.split("_")) == ({metric.unit.lower()} if metric.unit else set())
    assert sum(metric.label == other.label for other in METRICS.values()) == 1


@pytest.mark.parametrize(("percent", "missed"), [(90, 0.05), (95, 0.05), (99, 0.025)])
def test_samples_suffice_to_see_the_percentile(percent: int, missed: float) -> None:
    samples = METRICS[f"latency_p{percent}_ms"].min_repeats
    assert (percent / 100) ** samples <= missed


@pytest.mark.parametrize(
    ("limit", "at_most", "value", "violation"),
    [
        (10.0, True, 12.0, 0.2),
        (10.0, True, 9.0, -0.1),
        (0.8, False, 0.6, 0.25),
        (0.8, False, 0.9, -0.125),
        (-2.0, False, -3.0, 0.5),
        (0.0, True, 0.001, 1.0),
    ],
)
def test_violations_are_relative_to_the_limit(limit: float, at_most: bool, value: float, violation: float) -> None:
    constraint = Constraint(metric="m", limit=limit, at_most=at_most)
    assert constraint.violation(value) == pytest.approx(violation)
    np.testing.assert_allclose(constraint.violation(np.array([value, limit])), [violation, 0.0], atol=1e-15)


@given(st.floats(-1e6, 1e6), st.booleans(), st.floats(-1e6, 1e6))
def test_a_limit_is_broken_exactly_when_the_violation_is_positive(limit: float, at_most: bool, value: float) -> None:
    holds = value <= limit if at_most else value >= limit
    assert (Constraint(metric="m", limit=limit, at_most=at_most).violation(value) <= 0) == holds


def test_limits_read_like_the_job_file() -> None:
    assert str(Constraint(metric="latency_p95_ms", limit=12.0, at_most=True)) == "latency_p95_ms <= 12"
    assert str(Constraint(metric="accuracy", limit=0.875, at_most=False)) == "accuracy >= 0.875"
