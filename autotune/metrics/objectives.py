"""Converts a job's objectives into numbers to minimise, on a fixed scale for the hypervolume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.metrics.catalog import METRICS, Kind, Metric, Number, percentiles_of
from autotune.metrics.pareto import Points
from workers.timing.estimates import Figure

#: Lower bound of a logarithmic metric: smaller divergences are indistinguishable from 0, which has no logarithm.
_FLOOR = 1e-5
#: Maps count towards the hypervolume up to this factor of the latency or memory of full precision.
_SLACK = 1.1
#: Response time of a nearly overloaded server, in durations of a request: at a load of 0.9, 95 % are shorter if
#: service times vary as much as times between arrivals.
_NEARLY_OVERLOADED = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Two or three metrics to trade off."""

    metrics: tuple[Metric, ...]

    @classmethod
    def named(cls, names: Sequence[str]) -> "Objectives":
        """Return the objectives with these names."""
        return cls(metrics=tuple(METRICS[name] for name in names))

    def values(self, figures: Mapping[str, Figure]) -> tuple[float, ...]:
        """Return one number to minimise per objective: accuracy is negated, divergence is log10."""
        return tuple(minimised(metric, figures[metric.name].value) for metric in self.metrics)

    def points(self, many: Sequence[Mapping[str, Figure]]) -> Points:
        """Return the values of several candidates, shape ``(n, objectives)``."""
        return np.array([self.values(figures) for figures in many], dtype=np.float64).reshape(-1, len(self.metrics))

    def normalise(self, points: Points, full_precision: Mapping[str, Figure]) -> Points:
        """Return points on a scale where the latency and memory of full precision are 1.

        A job's hypervolume then means the same on fast and slow machines. The unit of accuracy is a
        tenth of full precision's, and the unit of divergence a decade.
        """
        units: Points = np.array([_unit(metric, full_precision) for metric in self.metrics])
        return points / units

    def reference_point(self, full_precision: Mapping[str, Figure]) -> Points:
        """Return the normalised reference point of the hypervolume, shape ``(objectives,)``.

        It is 10 % more latency or memory than full precision, 10 % less accuracy, or a divergence
        of 1. The job's first trial fixes it, so hypervolumes within a job are comparable.
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
    """Return full precision's value, or that of a nearly overloaded server if full precision is overloaded."""
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
