"""Metrics by what they are about, and their values as text."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.metrics.catalog import (
    METRICS,
    OVERLOADED_MS,
    Kind,
    decisive_workload,
    metric_of,
    percentiles_of,
    ratio_of,
)
from workers.measurement import Split, Workload


@given(st.floats(1e-4, 1e6, exclude_max=True), st.sampled_from([-1.0, 1.0]))
def test_three_digits_are_read_without_an_exponent(size: float, sign: float) -> None:
    assume(float(f"{size:.3g}") < 1e6)
    text = METRICS["weight_memory_mib"].text(sign * size)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)
    assert math.isclose(float(text), sign * size, rel_tol=0.005)
    digits = text.lstrip("-0.").replace(".", "")
    assert len(digits) >= 3, "zeros at the end are digits too"
    assert len(digits) <= 4 or "." not in text, "one more where rounding carries over, and those of whole numbers"


@given(st.floats(1e6, 1e300) | st.floats(1e-300, 1e-4, exclude_max=True))
def test_very_large_and_very_small_values_are_read_with_an_exponent(value: float) -> None:
    text = METRICS["weight_memory_mib"].text(value)
    assert math.isclose(float(text), value, rel_tol=0.005)
    assert len(text) <= len("1.23e-300")


@pytest.mark.parametrize(
    ("name", "value", "text", "with_unit"),
    [
        ("latency_p50_ms", 12.0, "12.0", "12.0 ms"),
        ("latency_p50_ms", math.nan, "unknown", "unknown"),
        ("latency_p50_ms", math.inf, "unknown", "unknown"),
        ("latency_p50_ms", 2.0 * OVERLOADED_MS, "2e+09", "2e+09 ms"),
        ("queued_latency_p95_ms", OVERLOADED_MS, "overloaded", "overloaded"),
        ("weight_memory_mib", 0.0, "0", "0 MiB"),
        ("latency_ratio", 0.0, "unknown", "unknown"),
        ("latency_ratio", 0.5, "2.00x", "2.00x as fast"),
        ("latency_ratio", 2.0, "0.50x", "0.50x as fast"),
        ("divergence", 0.0, "0", "0"),
        ("divergence", 0.01234, "1.2e-02", "1.2e-02"),
        ("accuracy_drop", 0.0123, "1.23 %", "1.23 %"),
        ("accuracy", 0.87654, "0.8765", "0.8765"),
        ("weight_memory_mib", 1.0, "1.00", "1.00 MiB"),
    ],
)
def test_values_have_the_digits_of_their_kind(name: str, value: float, text: str, with_unit: str) -> None:
    assert METRICS[name].text(value) == text
    assert METRICS[name].text_with_unit(value) == with_unit


@pytest.mark.parametrize("split", Split)
def test_quality_is_found_by_kind_and_split(split: Split) -> None:
    prefix = {Split.EVALUATION: "", Split.SHIFTED: "shifted_", Split.HELD_OUT: "held_out_"}[split]
    assert metric_of(Kind.ACCURACY, split).name == f"{prefix}accuracy"
    assert metric_of(Kind.ACCURACY_DROP, split).name == f"{prefix}accuracy_drop"


@pytest.mark.parametrize("workload", Workload)
def test_latencies_are_found_by_workload_and_percent(workload: Workload) -> None:
    prefix = "" if workload is Workload.FORWARD else f"{workload}_"
    names = {percent: f"{prefix}latency_p{percent}_ms" for percent in (50, 90, 95, 99)}
    assert {percent: metric.name for percent, metric in percentiles_of(workload).items()} == names
    assert ratio_of(workload).name == f"{prefix}latency_ratio"
    queued = percentiles_of(workload, queued=True)
    assert bool(queued) == (workload is Workload.REQUEST), "only requests wait"
    assert all(metric.name == f"queued_latency_p{percent}_ms" for percent, metric in queued.items())


@pytest.mark.parametrize(
    ("objectives", "workload"),
    [
        (["accuracy", "decode_latency_p50_ms", "latency_p50_ms"], Workload.DECODE),
        (["latency_ratio", "prefill_latency_p50_ms"], Workload.FORWARD),
        (["accuracy", "queued_latency_p95_ms"], Workload.REQUEST),
        (["accuracy", "weight_memory_mib"], Workload.FORWARD),
    ],
)
def test_the_first_latency_decides_the_workload(objectives: list[str], workload: Workload) -> None:
    assert decisive_workload(objectives) is workload


def test_what_a_search_never_sees_cannot_be_limited() -> None:
    held_out = [metric for metric in METRICS.values() if metric.split is Split.HELD_OUT and metric.is_quality]
    assert held_out
    for metric in held_out:
        assert (metric.can_be_limited, metric.reported_only) == (False, True)
    assert METRICS["accuracy"].can_be_limited
    assert not METRICS["latency_p90_ms"].can_be_limited
