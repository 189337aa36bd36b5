"""Workloads beside the forward pass, from the job file to the sampler's posterior."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.errors import JobSpecError
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, percentiles_of, ratio_of
from autotune.metrics.from_measurement import Reference, figures_of
from autotune.metrics.queueing import response_ms
from autotune.planner.posterior import Posterior, traded_off
from autotune.planner.prior import Prior
from autotune.search.run import _check_figures
from workers.measurement import Environment, LatencySamples, Measurement, Split, Workload
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

ENVIRONMENT = Environment(hardware="CPU", backend="x86", threads=1, load=0.0, versions={})


def samples(workload: Workload, candidate_ms: float, reference_ms: float, batch_size: int = 1) -> LatencySamples:
    return LatencySamples(
        workload=workload, batch_size=batch_size, candidate_ms=np.full(100, candidate_ms),
        reference_ms=np.full(20, reference_ms),
    )  # fmt: skip


def measurement(*latency: LatencySamples) -> Measurement:
    return Measurement(
        accuracy=0.5, divergence=0.0, weight_bytes=8, latency=latency, working_bytes=8, seconds=1.0,
        forward_seconds=1.0, environment=ENVIRONMENT,
    )  # fmt: skip


FULL = measurement(
    samples(Workload.FORWARD, 10.0, 10.0), samples(Workload.DECODE, 2.0, 2.0), samples(Workload.FORWARD, 99.0, 99.0, 8)
)


def test_every_workload_has_percentiles_and_a_ratio() -> None:
    for workload in Workload:
        assert list(percentiles_of(workload)) == [50, 90, 95, 99]
        assert percentiles_of(workload)[99].min_repeats == 500
        assert ratio_of(workload).workload is workload
    assert METRICS["prefill_latency_p50_ms"].label == "Time to first token p50"


def test_figures_of_each_workload_are_corrected_by_its_own_reference() -> None:
    reference = Reference.of(FULL)
    assert reference.latency_p50_ms == 10.0
    assert reference.workloads_p50_ms == {Workload.DECODE: 2.0}
    figures = figures_of(
        measurement(samples(Workload.FORWARD, 6.0, 12.0), samples(Workload.DECODE, 3.0, 4.0)), reference
    )
    assert figures["latency_p50_ms"].value == pytest.approx(5.0)
    assert figures["decode_latency_p50_ms"].value == pytest.approx(1.5)
    assert figures["decode_latency_ratio"].value == pytest.approx(0.75)
    assert "prefill_latency_p50_ms" not in figures
    assert Reference.of_figures(figures_of(FULL, reference)) == reference


def test_response_times_are_those_of_requests_without_drift() -> None:
    full = measurement(samples(Workload.FORWARD, 10.0, 10.0), samples(Workload.REQUEST, 20.0, 20.0))
    reference = Reference.of(full)
    assert not any(name.startswith("queued") for name in figures_of(full, reference))
    # The machine was half as fast: a request takes 10 ms on the job's scale, and they come every 20 ms.
    slow = measurement(samples(Workload.FORWARD, 6.0, 20.0), samples(Workload.REQUEST, 20.0, 40.0))
    figures = figures_of(slow, reference, 50.0)
    expected = np.percentile(response_ms(np.full(100, 10.0), 50.0), 95)
    assert figures["queued_latency_p95_ms"] == Figure(value=expected, low=expected, high=expected)
    assert "queued_latency_p99_ms" not in figures
    assert figures_of(full, reference, 50.0)["queued_latency_p50_ms"].value == OVERLOADED_MS
    assert Reference.of_figures(figures_of(full, reference, 1.0)) == reference


@pytest.mark.parametrize(
    ("job", "workloads"),
    [
        ({}, (Workload.FORWARD,)),
        ({"objectives": ["accuracy", "decode_latency_p50_ms"]}, (Workload.DECODE,)),
        ({"objectives": ["decode_latency_p50_ms", "accuracy"], "constraints": {"prefill_latency_p50_ms": {"max": 5}}},
         (Workload.DECODE, Workload.PREFILL)),
        ({"objectives": ["decode_latency_p50_ms", "accuracy"], "measurement": {"workloads": ["forward"]}},
         (Workload.DECODE, Workload.FORWARD)),
        ({"objectives": ["decode_latency_p50_ms", "accuracy"], "measurement": {"batch_sizes": [1, 4]}},
         (Workload.DECODE, Workload.FORWARD)),
        ({"objectives": ["weight_memory_mib", "accuracy"]}, (Workload.FORWARD,)),
    ],
)  # fmt: skip
def test_maps_of_the_search_are_timed_where_somebody_asks(
    job: dict[str, object], workloads: tuple[Workload, ...]
) -> None:
    spec = JobSpec.parse({"name": "timed", "task": {"name": "causal-lm"}, **job})
    assert spec.searched_workloads() == workloads


@pytest.mark.parametrize(
    ("job", "workloads"),
    [
        ({}, ()),
        ({"objectives": ["decode_latency_p50_ms", "accuracy"]}, (Workload.DECODE,)),
        ({"constraints": {"prefill_latency_p95_ms": {"max": 5}}, "measurement": {"workloads": ["decode", "forward"]}},
         (Workload.PREFILL, Workload.DECODE)),
        ({"measurement": {"requests_per_second": 3}}, (Workload.REQUEST,)),
    ],
)  # fmt: skip
def test_a_job_times_what_it_asks_for_and_what_it_goes_by(
    job: dict[str, object], workloads: tuple[Workload, ...]
) -> None:
    spec = JobSpec.parse({"name": "timed", "task": {"name": "causal-lm"}, **job})
    assert spec.worker_setup().measurement.workloads == workloads


def test_response_times_need_a_load() -> None:
    job = {"name": "a", "task": {"name": "b"}, "constraints": {"queued_latency_p95_ms": {"max": 5}}}
    with pytest.raises(JobSpecError, match=r"queued_latency_p95_ms needs measurement\.requests_per_second, the mean"):
        JobSpec.parse(job)
    spec = JobSpec.parse(job | {"measurement": {"requests_per_second": 3}})
    assert spec.worker_setup().measurement.requests_per_second == 3
    with pytest.raises(JobSpecError, match=r"requests_per_second: must be greater than 0, but got 0"):
        JobSpec.parse(job | {"measurement": {"requests_per_second": 0}})
    with pytest.raises(JobSpecError, match=r"queued_latency_p95_ms.max: must be less than 1000000000, but got"):
        JobSpec.parse(job | {"constraints": {"queued_latency_p95_ms": {"max": 1e9}}})


def test_an_unknown_workload_is_refused() -> None:
    known = "'forward', 'prefill', 'decode', 'request' or 'sampling'"
    with pytest.raises(JobSpecError, match=f"workloads.0: must be {known}"):
        JobSpec.parse({"name": "a", "task": {"name": "b"}, "measurement": {"workloads": ["sleep"]}})


def test_a_task_must_have_the_workloads_of_the_job() -> None:
    description = ModelDescription(
        fingerprint="0" * 64, layers=(), refusals={}, layer_bytes={}, other_bytes=0,
        calibration=Calibration(ranges={}, samples=0, seconds=0.0), environment=ENVIRONMENT,
    )  # fmt: skip
    spec = JobSpec.parse({"name": "a", "task": {"name": "b"}, "objectives": ["decode_latency_p50_ms", "accuracy"]})
    _check_figures(spec, replace(description, workloads=(Workload.PREFILL, Workload.DECODE)))
    with pytest.raises(
        JobSpecError, match="the job needs workload decode, but task 'b' on x86 has only the forward pass"
    ):
        _check_figures(spec, description)


def test_each_workload_has_beliefs_of_its_own() -> None:
    choices = [("fp32", "int8_weight_only", "int8_dynamic")] * 4
    latency = np.tile([0.0, 0.0, -0.2], (4, 1))
    expected = Prior(
        divergence=np.tile([0.0, 1e-4, 1e-4], (4, 1)), latency=latency, memory_mib=np.tile([4.0, 1.0, 1.0], (4, 1)),
        fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=0.0, probed=True,
    )  # fmt: skip
    posterior = Posterior(expected, choices, ["decode_latency_p50_ms", "accuracy"])
    posterior.full_precision = {
        "latency_p50_ms": Figure(value=10.0), "decode_latency_p50_ms": Figure(value=2.0), "accuracy": Figure(value=0.5)
    }  # fmt: skip
    # Before anything was measured half of the time of decoding goes with the bytes; forward passes were probed.
    np.testing.assert_allclose(
        posterior.costs(workload=Workload.DECODE)[1], np.tile([0.0, -0.375 / 4, -0.375 / 4], (4, 1))
    )
    np.testing.assert_allclose(posterior.costs()[1], latency)
    uniform = np.repeat(np.arange(3)[:, None], 4, axis=1)
    # One row at a time is as fast as its weights are small: the other way round than a whole prompt.
    ratios = [(1.0, 1.0), (1.0, 0.4), (0.2, 0.9)]
    posterior.observe(
        uniform,
        [{"latency_ratio": Figure(value=a), "decode_latency_ratio": Figure(value=b)} for a, b in ratios],
    )
    found = posterior.predict(uniform)
    np.testing.assert_allclose(found["latency_ratio"], [1.0, 1.0, 0.2], atol=0.02)
    np.testing.assert_allclose(found["decode_latency_p50_ms"], [2.0, 0.8, 1.8], atol=0.15)
    assert posterior.costs(workload=Workload.DECODE)[1][:, 1].max() < -0.1
    assert posterior.costs()[1][:, 1].min() > -0.02
    assert (posterior.deviation("decode_latency_p50_ms", uniform) > 0).all()


def test_response_times_are_believed_to_follow_requests() -> None:
    choices = [("fp32", "int8_dynamic", "int8_weight_only")] * 4
    expected = Prior(
        divergence=np.tile([0.0, 1e-4, 1e-4], (4, 1)), latency=np.tile([0.0, -0.1, 0.0], (4, 1)),
        memory_mib=np.tile([4.0, 1.0, 1.0], (4, 1)), fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=0.0,
        probed=True,
    )  # fmt: skip
    posterior = Posterior(expected, choices, ["queued_latency_p95_ms", "accuracy"])
    uniform = np.repeat(np.arange(3)[:, None], 4, axis=1)
    found = [
        {"request_latency_ratio": Figure(value=ratio), "queued_latency_p95_ms": Figure(value=value)}
        for ratio, value in ((1.0, 1.1 * OVERLOADED_MS), (0.5, 80.0), (0.8, 400.0))
    ]
    posterior.full_precision = found[0] | {
        "latency_p50_ms": Figure(value=9.0),
        "request_latency_p50_ms": Figure(value=9),
    }
    posterior.observe(uniform, found)
    predicted = posterior.predict(uniform)
    np.testing.assert_allclose(predicted["request_latency_ratio"], [1.0, 0.5, 0.8], rtol=0.02)
    np.testing.assert_allclose(predicted["queued_latency_p95_ms"][1:], [80.0, 400.0], rtol=0.15)
    assert predicted["queued_latency_p95_ms"][0] > 1e7
    assert (posterior.deviation("queued_latency_p95_ms", uniform) > 0).all()


def test_splits_and_workloads_are_those_of_the_metrics_or_plain() -> None:
    assert traded_off(["weight_memory_mib", "peak_memory_mib"]) == ((Split.EVALUATION,), (Workload.FORWARD,))
    quality = ["shifted_divergence", "prefill_latency_ratio"]
    assert traded_off(quality) == ((Split.SHIFTED,), (Workload.PREFILL,))
