"""The job's objectives as numbers to minimise, with a fixed scale for the hypervolume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.metrics.catalog import METRICS, Kind, Metric, Number, percentiles_of
from autotune.metrics.pareto import Points
from workers.timing.estimates import Figure

#: Smallest value of a logarithmic metric: nobody tells less from equal outputs, whose 0 has no logarithm.
_FLOOR = 1e-5
#: A front is worth something up to this much worse than full precision.
_SLACK = 1.1
#: Response times of a server that has little to spare, in times of a request: 95 % are shorter at a load of 0.9, if
#: the times of requests vary as much as those between them.
_NEARLY_OVERLOADED = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Two or three metrics to trade off."""

    metrics: tuple[Metric, ...]

    @classmethod
    def named(cls, names: Sequence[str]) -> "Objectives":
        """Return the objectives of those names."""
        return cls(metrics=tuple(METRICS[name] for name in names))

    def values(self, figures: Mapping[str, Figure]) -> tuple[float, ...]:
        """Return one number to minimise for each objective: accuracy negated, divergence as log10."""
        return tuple(minimised(metric, figures[metric.name].value) for metric in self.metrics)

    def points(self, many: Sequence[Mapping[str, Figure]]) -> Points:
        """Return the values of several candidates, shape ``(n, objectives)``."""
        return np.array([self.values(figures) for figures in many], dtype=np.float64).reshape(-1, len(self.metrics))

    def normalise(self, points: Points, full_precision: Mapping[str, Figure]) -> Points:
        """Return points on a scale where full precision's cost is 1 in latency and memory.

        The hypervolume of one job then means the same on fast and slow machines. Accuracy counts in
        units of a tenth of full precision's, divergence in decades.
        """
        units: Points = np.array([_unit(metric, full_precision) for metric in self.metrics])
        return points / units

    def reference_point(self, full_precision: Mapping[str, Figure]) -> Points:
        """Return the normalised point where a map is worth nothing, shape ``(objectives,)``.

        That is 10 % more latency or memory than full precision, accuracy 10 % below its, or a
        divergence of 1. It is fixed by the job's first trial, so hypervolumes of a job compare.
        """
        corner = np.array([[_worthless(metric, full_precision) for metric in self.metrics]])
        return np.asarray(self.normalise(corner, full_precision)[0])


def minimised(metric: Metric, values: Number) -> Number:
    """Return a metric's value, or an array of them, as numbers to minimise."""
    if metric.logarithmic:
        logarithm: Number = np.log10(np.maximum(values, _FLOOR))
        return logarithm
    return -values if metric.maximise else values


def _unit(metric: Metric, full_precision: Mapping[str, Figure]) -> float:
    if metric.logarithmic:
        return 1.0
    if metric.kind is Kind.ACCURACY_DROP:
        return 0.1
    value = abs(_cost(metric, full_precision)) or 1.0
    return 0.1 * value if metric.maximise else value


def _cost(metric: Metric, full_precision: Mapping[str, Figure]) -> float:
    """Return full precision's value; if it is overloaded, what a server would have that is nearly so."""
    value = full_precision[metric.name].value
    if metric.is_overloaded(value):
        return _NEARLY_OVERLOADED * full_precision[percentiles_of(metric.workload)[50].name].value
    return value


def _worthless(metric: Metric, full_precision: Mapping[str, Figure]) -> float:
    if metric.logarithmic:
        return 0.0
    if metric.kind is Kind.ACCURACY_DROP:
        return 0.1
    value = _cost(metric, full_precision)
    return -value + 0.1 * abs(value) if metric.maximise else _SLACK * value
