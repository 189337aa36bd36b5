"""From a measurement to the figures people and samplers see."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.metrics import METRICS, Figure
from workers.estimates import Estimate, latency_ratio, percentile
from workers.measurement import LatencySamples, Measurement

MIB = float(1 << 20)

_PERCENTILES = {"latency_p50_ms": 50.0, "latency_p90_ms": 90.0, "latency_p95_ms": 95.0, "latency_p99_ms": 99.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Full precision's figures, measured once at the start of the job."""

    #: Task metric of full precision.
    accuracy: float
    #: Median latency of full precision in ms at the first batch size.
    latency_p50_ms: float

    @classmethod
    def of(cls, measurement: Measurement) -> "Reference":
        """Return the reference that full precision's own measurement is."""
        return cls(accuracy=measurement.accuracy, latency_p50_ms=float(np.median(measurement.latency[0].candidate_ms)))

    @classmethod
    def of_figures(cls, figures: Mapping[str, Figure]) -> "Reference":
        """Return the reference from full precision's recorded figures."""
        return cls(accuracy=figures["accuracy"].value, latency_p50_ms=figures["latency_p50_ms"].value)


def figures_of(measurement: Measurement, reference: Reference) -> dict[str, Figure]:
    """Return metric name -> figure of everything that was measured.

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
    if measurement.session_seconds is not None:
        figures["session_ms"] = Figure(value=measurement.session_seconds * 1e3)
    if measurement.held_out is not None:
        figures["held_out_accuracy"] = Figure(value=measurement.held_out[0])
        figures["held_out_accuracy_drop"] = Figure(value=_drop(*measurement.held_out))
    if measurement.latency:
        figures |= _latency_figures(measurement.latency[0], reference)
    return figures


def _drop(accuracy: float, reference: float) -> float:
    return (reference - accuracy) / max(abs(reference), 1e-12)


def _latency_figures(latency: LatencySamples, reference: Reference) -> dict[str, Figure]:
    drift = reference.latency_p50_ms / float(np.median(latency.reference_ms))
    figures = {
        name: _figure(percentile(latency.candidate_ms * drift, percent))
        for name, percent in _PERCENTILES.items()
        if len(latency.candidate_ms) >= METRICS[name].min_repeats
    }
    figures["latency_ratio"] = _figure(latency_ratio(latency))
    return figures


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.value, low=estimate.low, high=estimate.high)
