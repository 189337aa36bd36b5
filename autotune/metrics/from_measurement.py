"""From a measurement to the figures people and samplers see."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from autotune.metrics.catalog import METRICS, QUEUED, Figure, prefix_of
from autotune.metrics.queueing import response_percentiles
from workers.measurement import LatencySamples, Measurement, Workload
from workers.timing.estimates import Estimate, latency_ratio, percentile

MIB = float(1 << 20)

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Full precision's figures, measured once at the start of the job."""

    #: Task metric of full precision.
    accuracy: float
    #: Median latency of full precision in ms at the first batch size.
    latency_p50_ms: float
    #: The same of the other workloads that were timed.
    workloads_p50_ms: Mapping[Workload, float] = field(default_factory=dict)
    #: Task metric of full precision on shifted data; None if the task has none.
    shifted_accuracy: float | None = None

    @classmethod
    def of(cls, measurement: Measurement) -> "Reference":
        """Return the reference that full precision's own measurement is."""
        medians = {name: float(np.median(samples.candidate_ms)) for name, samples in _first(measurement).items()}
        return cls(
            accuracy=measurement.accuracy,
            latency_p50_ms=medians.pop(Workload.FORWARD),
            workloads_p50_ms=medians,
            shifted_accuracy=measurement.shifted[0] if measurement.shifted else None,
        )

    @classmethod
    def of_figures(cls, figures: Mapping[str, Figure]) -> "Reference":
        """Return the reference from full precision's recorded figures."""
        shifted = figures.get("shifted_accuracy")
        names = {workload: f"{prefix_of(workload)}latency_p50_ms" for workload in Workload}
        medians = {workload: figures[name].value for workload, name in names.items() if name in figures}
        return cls(
            accuracy=figures["accuracy"].value,
            latency_p50_ms=medians.pop(Workload.FORWARD),
            workloads_p50_ms=medians,
            shifted_accuracy=shifted.value if shifted else None,
        )


def figures_of(
    measurement: Measurement, reference: Reference, requests_per_second: float | None = None
) -> dict[str, Figure]:
    """Return metric name -> figure of everything that was measured, and of requests under a load if there is one.

    Latencies are those of the first batch size, multiplied by the job's full-precision median over
    the interleaved full-precision median of this very measurement. That takes out how fast the
    machine happened to be and makes trials of one job comparable.
    """
    figures = {
        "accuracy": Figure(value=measurement.accuracy),
        "accuracy_drop": Figure(value=_drop(measurement.accuracy, reference.accuracy)),
        "divergence": Figure(value=measurement.divergence),
        "weight_memory_mib": Figure(value=measurement.weight_bytes / MIB),
    }
    if measurement.working_bytes is not None:
        peak = measurement.weight_bytes + measurement.working_bytes
        figures["peak_memory_mib"] = Figure(value=peak / MIB)
    if measurement.shifted is not None and reference.shifted_accuracy is not None:
        accuracy, divergence = measurement.shifted
        figures["shifted_accuracy"] = Figure(value=accuracy)
        figures["shifted_accuracy_drop"] = Figure(value=_drop(accuracy, reference.shifted_accuracy))
        figures["shifted_divergence"] = Figure(value=divergence)
    if measurement.session_seconds is not None:
        figures["session_ms"] = Figure(value=measurement.session_seconds * 1e3)
    if measurement.held_out is not None:
        figures["held_out_accuracy"] = Figure(value=measurement.held_out[0])
        figures["held_out_accuracy_drop"] = Figure(value=_drop(*measurement.held_out))
    for workload, samples in _first(measurement).items():
        full = {Workload.FORWARD: reference.latency_p50_ms, **reference.workloads_p50_ms}.get(workload)
        if full is not None:
            figures |= _latency_figures(samples, full)
            if workload is Workload.REQUEST and requests_per_second is not None:
                figures |= _queued_figures(samples, full, requests_per_second)
    return figures


def _first(measurement: Measurement) -> dict[Workload, LatencySamples]:
    """Return each workload's latencies at the first batch size."""
    return {samples.workload: samples for samples in reversed(measurement.latency)}


def _drop(accuracy: float, reference: float) -> float:
    return (reference - accuracy) / max(abs(reference), 1e-12)


def _latency_figures(latency: LatencySamples, full_precision_ms: float) -> dict[str, Figure]:
    prefix, corrected_ms = prefix_of(latency.workload), latency.candidate_ms * _drift(latency, full_precision_ms)
    told = _told(prefix, len(corrected_ms))
    figures = {name: _figure(percentile(corrected_ms, percent)) for percent, name in told.items()}
    figures[f"{prefix}latency_ratio"] = _figure(latency_ratio(latency))
    return figures


def _queued_figures(latency: LatencySamples, full_precision_ms: float, requests_per_second: float) -> dict[str, Figure]:
    names, drift = _told(QUEUED, len(latency.candidate_ms)), _drift(latency, full_precision_ms)
    found = response_percentiles(latency, list(names), drift=drift, requests_per_second=requests_per_second)
    return {name: _figure(found[percent]) for percent, name in names.items()}


def _drift(latency: LatencySamples, full_precision_ms: float) -> float:
    return full_precision_ms / float(np.median(latency.reference_ms))


def _told(prefix: str, count: int) -> dict[int, str]:
    """Return percent -> metric of the percentiles that so many samples tell."""
    names = {percent: f"{prefix}latency_p{percent}_ms" for percent in _PERCENTILES}
    return {percent: name for percent, name in names.items() if count >= METRICS[name].min_repeats}


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.value, low=estimate.low, high=estimate.high)
