"""Figures of a measurement, relative to full precision."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.metrics.from_measurement import Reference, figures_of
from autotune.metrics.queueing import response_percentiles
from workers.measurement import Environment, LatencySamples, Measurement, Workload

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


def timed(workload: Workload, candidate: float, reference: float, *, batch_size: int = 1) -> LatencySamples:
    return LatencySamples(
        workload=workload,
        batch_size=batch_size,
        candidate_ms=np.full(100, candidate),
        reference_ms=np.full(20, reference),
    )


def test_figures_are_those_of_the_first_batch_size() -> None:
    measurement = replace(measured(), latency=(*measured().latency, timed(Workload.FORWARD, 64.0, 80.0, batch_size=8)))
    assert figures_of(measurement, REFERENCE) == figures_of(measured(), REFERENCE)


def test_every_workload_is_scaled_by_its_own_drift() -> None:
    reference = replace(REFERENCE, workloads_p50_ms={Workload.PREFILL: 50.0, Workload.DECODE: 2.0})
    others = (timed(Workload.PREFILL, 30.0, 40.0), timed(Workload.DECODE, 1.0, 4.0), timed(Workload.REQUEST, 1.0, 1.0))
    figures = figures_of(replace(measured(), latency=(*measured().latency, *others)), reference)
    assert figures["latency_p50_ms"].value == pytest.approx(5.0)
    assert figures["prefill_latency_p50_ms"].value == pytest.approx(30.0 * 50.0 / 40.0)
    assert figures["decode_latency_p50_ms"].value == pytest.approx(1.0 * 2.0 / 4.0)
    assert figures["decode_latency_ratio"].value == pytest.approx(0.25)
    assert not any(name.startswith("request_") for name in figures), "full precision was not timed in it"


def test_only_requests_wait_and_only_under_a_load() -> None:
    reference = replace(REFERENCE, workloads_p50_ms={Workload.DECODE: 4.0, Workload.REQUEST: 20.0})
    request = timed(Workload.REQUEST, 8.0, 10.0)
    measurement = replace(measured(), latency=(*measured().latency, timed(Workload.DECODE, 4.0, 4.0), request))
    free, loaded = figures_of(measurement, reference), figures_of(measurement, reference, 30.0)
    names = [f"queued_latency_p{percent}_ms" for percent in (50, 90, 95)]  # 100 samples are too few for p99
    assert loaded.keys() - free.keys() == set(names)
    expected = response_percentiles(request, (50, 90, 95), drift=2.0, requests_per_second=30.0)
    assert [loaded[name] for name in names] == list(expected.values())


def test_other_data_and_sessions_have_figures_if_they_were_measured() -> None:
    reference = replace(REFERENCE, shifted_accuracy=0.5)
    measurement = replace(measured(), shifted=(0.45, 0.02), held_out=(0.63, 0.7), session_seconds=1.5)
    added = {
        name: figure.value
        for name, figure in figures_of(measurement, reference).items()
        if name not in figures_of(measured(), REFERENCE)
    }
    assert added == {
        "shifted_accuracy": 0.45,
        "shifted_accuracy_drop": pytest.approx(0.1),
        "shifted_divergence": 0.02,
        "held_out_accuracy": 0.63,
        "held_out_accuracy_drop": pytest.approx(0.1),
        "session_ms": 1500.0,
    }
    assert not any("shifted" in name for name in figures_of(measurement, REFERENCE)), "there is nothing to compare with"


def test_an_accuracy_below_zero_drops_as_it_falls() -> None:
    figures = figures_of(replace(measured(), accuracy=-2.5), replace(REFERENCE, accuracy=-2.0))
    assert figures["accuracy_drop"].value == pytest.approx(0.25)


def test_reference_has_the_medians_of_every_workload_and_the_shifted_accuracy() -> None:
    others = (timed(Workload.DECODE, 2.0, 2.0), timed(Workload.FORWARD, 64.0, 64.0, batch_size=8))
    baseline = replace(measured(10.0, 10.0), latency=(*measured(10.0, 10.0).latency, *others), shifted=(0.5, 0.0))
    reference = Reference.of(baseline)
    assert reference == Reference(
        accuracy=0.76, latency_p50_ms=10.0, workloads_p50_ms={Workload.DECODE: 2.0}, shifted_accuracy=0.5
    )
    assert Reference.of_figures(figures_of(baseline, reference)) == reference
