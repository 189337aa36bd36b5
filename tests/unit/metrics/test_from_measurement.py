from dataclasses import replace

import numpy as np
import pytest

from autotune.metrics.from_measurement import Reference, figures_of
from workers.measurement import Environment, LatencySamples, Measurement

REFERENCE = Reference(accuracy=0.8, latency_p50_ms=10.0)


def measured(candidate: float = 4.0, reference: float = 8.0, repeats: int = 100) -> Measurement:
    latency = LatencySamples(
        batch_size=1,
        candidate_ms=np.full(repeats, candidate),
        reference_ms=np.full(repeats // 5, reference),
    )
    environment = Environment(hardware="cpu", backend="x86", threads=2, load=0.0, versions={})
    return Measurement(
        accuracy=0.76,
        divergence=0.001,
        weight_bytes=3 << 20,
        latency=(latency,),
        working_bytes=1 << 20,
        seconds=1.0,
        forward_seconds=0.9,
        environment=environment,
    )


def test_latency_is_scaled_by_the_drift_of_full_precision() -> None:
    figures = figures_of(measured(candidate=4.0, reference=8.0), REFERENCE)
    assert figures["latency_ratio"].value == pytest.approx(0.5)
    assert figures["latency_p50_ms"].value == pytest.approx(5.0)
    assert figures["latency_p95_ms"].value == pytest.approx(5.0)


def test_a_slow_spell_of_the_machine_changes_nothing() -> None:
    quiet, busy = (figures_of(measured(4.0 * slow, 8.0 * slow), REFERENCE) for slow in (1.0, 1.7))
    assert quiet["latency_p50_ms"].value == pytest.approx(busy["latency_p50_ms"].value)


def test_accuracy_drop_is_relative_to_full_precision() -> None:
    assert figures_of(measured(), REFERENCE)["accuracy_drop"].value == pytest.approx(0.05)


def test_memory_is_in_mib_and_peak_includes_the_weights() -> None:
    figures = figures_of(measured(), REFERENCE)
    assert figures["weight_memory_mib"].value == 3.0
    assert figures["peak_memory_mib"].value == 4.0


@pytest.mark.parametrize(
    ("repeats", "missing"),
    [
        (20, {"latency_p90_ms", "latency_p95_ms", "latency_p99_ms"}),
        (100, {"latency_p99_ms"}),
        (500, set()),
    ],
)
def test_percentiles_need_enough_samples(repeats: int, missing: set[str]) -> None:
    names = {"latency_p50_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms"}
    assert names - set(figures_of(measured(repeats=repeats), REFERENCE)) == missing


def test_what_was_ruled_out_early_has_no_latency() -> None:
    figures = figures_of(replace(measured(), latency=(), working_bytes=None), REFERENCE)
    assert set(figures) == {"accuracy", "accuracy_drop", "divergence", "weight_memory_mib"}


def test_reference_comes_from_full_precision_or_its_record() -> None:
    baseline = measured(candidate=10.0, reference=10.0)
    reference = Reference.of(baseline)
    assert reference == Reference(accuracy=0.76, latency_p50_ms=10.0)
    assert Reference.of_figures(figures_of(baseline, reference)) == reference
