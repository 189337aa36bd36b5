"""Computes the figures for people and samplers from a measurement."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from autotune.metrics.catalog import Kind, Metric, metric_of, percentiles_of, ratio_of
from autotune.metrics.queueing import response_percentiles
from workers.measurement import LatencySamples, Measurement, Split, Workload
from workers.timing.estimates import Figure, latency_ratio, percentile

MIB = float(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Figures of full precision, measured once at the start of the job."""

    #: Task metric of full precision.
    accuracy: float
    #: Median latency of full precision in ms at the first batch size.
    latency_p50_ms: float
    #: Median latency of full precision in ms, for the other timed workloads.
    workloads_p50_ms: Mapping[Workload, float] = field(default_factory=dict)
    #: Task metric of full precision on shifted data; None if the task has none.
    shifted_accuracy: float | None = None

    @property
    def p50_ms(self) -> Mapping[Workload, float]:
        """The median latency of full precision in ms, for every timed workload."""
        return {Workload.FORWARD: self.latency_p50_ms, **self.workloads_p50_ms}

    @classmethod
    def of(cls, measurement: Measurement) -> "Reference":
        """Return the reference from the measurement of full precision itself."""
        medians = {name: float(np.median(samples.candidate_ms)) for name, samples in _first(measurement).items()}
        return cls(
            accuracy=measurement.accuracy,
            latency_p50_ms=medians.pop(Workload.FORWARD),
            workloads_p50_ms=medians,
            shifted_accuracy=measurement.shifted[0] if measurement.shifted else None,
        )

    @classmethod
    def of_figures(cls, figures: Mapping[str, Figure]) -> "Reference":
        """Return the reference from the recorded figures of full precision."""
        shifted = figures.get("shifted_accuracy")
        names = {workload: percentiles_of(workload)[50].name for workload in Workload}
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
    """Return metric name -> figure for everything measured, and for requests under load with ``requests_per_second``.

    Latencies are those of the first batch size, multiplied by the job's full-precision median and divided by
    the interleaved full-precision median of this measurement. This removes drift of the machine's speed and
    makes the trials of a job comparable.
    """
    figures = {
        **_quality(Split.EVALUATION, measurement.accuracy, reference.accuracy, measurement.divergence),
        "weight_memory_mib": Figure(value=measurement.weight_bytes / MIB),
    }
    if measurement.working_bytes is not None:
        peak = measurement.weight_bytes + measurement.working_bytes
        figures["peak_memory_mib"] = Figure(value=peak / MIB)
    if measurement.shifted is not None and reference.shifted_accuracy is not None:
        accuracy, divergence = measurement.shifted
        figures |= _quality(Split.SHIFTED, accuracy, reference.shifted_accuracy, divergence)
    if measurement.session_seconds is not None:
        figures["session_ms"] = Figure(value=measurement.session_seconds * 1e3)
    if measurement.held_out is not None:
        figures |= _quality(Split.HELD_OUT, *measurement.held_out)
    for workload, samples in _first(measurement).items():
        full = reference.p50_ms.get(workload)
        if full is not None:
            figures |= _latency_figures(samples, full)
            if workload is Workload.REQUEST and requests_per_second is not None:
                figures |= _queued_figures(samples, full, requests_per_second)
    return figures


def _first(measurement: Measurement) -> dict[Workload, LatencySamples]:
    """Return workload -> latencies at the first batch size."""
    return {samples.workload: samples for samples in reversed(measurement.latency)}


def _quality(split: Split, accuracy: float, reference: float, divergence: float | None = None) -> dict[str, Figure]:
    values = {
        Kind.ACCURACY: accuracy,
        Kind.ACCURACY_DROP: (reference - accuracy) / max(abs(reference), 1e-12),
        Kind.DIVERGENCE: divergence,
    }
    return {metric_of(kind, split).name: Figure(value=value) for kind, value in values.items() if value is not None}


def _latency_figures(latency: LatencySamples, full_precision_ms: float) -> dict[str, Figure]:
    corrected_ms = latency.candidate_ms * _drift(latency, full_precision_ms)
    meaningful = _meaningful(percentiles_of(latency.workload), len(corrected_ms))
    figures = {metric.name: percentile(corrected_ms, percent) for percent, metric in meaningful.items()}
    return figures | {ratio_of(latency.workload).name: latency_ratio(latency)}


def _queued_figures(latency: LatencySamples, full_precision_ms: float, requests_per_second: float) -> dict[str, Figure]:
    meaningful = _meaningful(percentiles_of(latency.workload, queued=True), len(latency.candidate_ms))
    drift = _drift(latency, full_precision_ms)
    found = response_percentiles(latency, list(meaningful), drift=drift, requests_per_second=requests_per_second)
    return {metric.name: found[percent] for percent, metric in meaningful.items()}


def _drift(latency: LatencySamples, full_precision_ms: float) -> float:
    return full_precision_ms / float(np.median(latency.reference_ms))


def _meaningful(metrics: Mapping[int, Metric], count: int) -> dict[int, Metric]:
    """Return the percentiles for which ``count`` samples are enough."""
    return {percent: metric for percent, metric in metrics.items() if count >= metric.min_repeats}
