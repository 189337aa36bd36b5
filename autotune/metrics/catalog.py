"""The metrics a job can optimise, constrain and show: one entry says all there is to know about each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workers.measurement import Workload

#: One value or an array of values.
Number = TypeVar("Number", float, npt.NDArray[np.float64])


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of a candidate."""

    #: Name in job files, the database and ``--json`` output; ends in the unit if there is one.
    name: str
    #: Name for people.
    label: str
    #: Unit for people, empty for a pure number.
    unit: str = ""
    #: Whether larger is better.
    maximise: bool = False
    #: Whether differences are ratios, so that plots, knees and hypervolumes use log10.
    logarithmic: bool = False
    #: Latency samples needed before the metric means anything; 0 for metrics that are no percentile.
    min_repeats: int = 0
    #: Whether it is only told, so that no search can go by it: final measurements alone have it, or only some backends.
    told: bool = False


#: Beginning of the names of metrics on shifted data.
SHIFTED = "shifted_"
#: Beginning of the names of metrics of requests that wait in line before they are served.
QUEUED = "queued_"
#: A queued latency from here on says that requests come faster than they are served: they wait without end.
OVERLOADED_MS = 1e9

#: Workload -> its name for people.
WORKLOADS = {
    Workload.FORWARD: "Latency",
    Workload.PREFILL: "Time to first token",
    Workload.DECODE: "Time per output token",
    Workload.REQUEST: "Time of a whole request",
    Workload.SAMPLING: "Time of a whole sample",
}


def prefix_of(workload: Workload) -> str:
    """Return how the names of a workload's metrics begin; those of the forward pass are plain."""
    return "" if workload is Workload.FORWARD else f"{workload}_"


def latency_behind(metric: str) -> str:
    """Return how the names of the measured latencies begin that a latency follows from; a queued one from requests."""
    prefix = metric.partition("latency")[0]
    return prefix_of(Workload.REQUEST) if prefix == QUEUED else prefix


def is_overloaded(metric: str, value: float) -> bool:
    """Return whether a value says that requests come faster than they are served."""
    return metric.startswith(QUEUED) and value >= OVERLOADED_MS


def _latencies(workload: Workload) -> tuple[Metric, ...]:
    prefix, label = prefix_of(workload), WORKLOADS[workload]
    ratio = Metric(name=f"{prefix}latency_ratio", label=f"{label} p50 relative to full precision")
    return *_percentiles(prefix, label), ratio


def _percentiles(prefix: str, label: str) -> Iterator[Metric]:
    for percent, repeats in {50: 0, 90: 30, 95: 60, 99: 500}.items():
        name = f"{prefix}latency_p{percent}_ms"
        yield Metric(name=name, label=f"{label} p{percent}", unit="ms", min_repeats=repeats)


#: Every metric by name. Sample counts: from n samples on, the two-sided 95 % order-statistic
#: interval of the percentile has a lower bound below the maximum (p90, p95: zero-exceedance proof,
#: 29 and 59; p99: 500, where the interval is bounded on both sides).
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="accuracy", label="Accuracy", maximise=True),
        Metric(name="accuracy_drop", label="Accuracy drop, relative"),
        Metric(name="held_out_accuracy", label="Accuracy on held-out data", maximise=True, told=True),
        Metric(name="held_out_accuracy_drop", label="Accuracy drop on held-out data, relative", told=True),
        Metric(name="divergence", label="Divergence from full precision", logarithmic=True),
        Metric(name=f"{SHIFTED}accuracy", label="Accuracy on shifted data", maximise=True),
        Metric(name=f"{SHIFTED}accuracy_drop", label="Accuracy drop on shifted data, relative"),
        Metric(name=f"{SHIFTED}divergence", label="Divergence on shifted data", logarithmic=True),
        *(metric for workload in Workload for metric in _latencies(workload)),
        *_percentiles(QUEUED, "Response time under load"),
        Metric(name="weight_memory_mib", label="Weight memory", unit="MiB"),
        Metric(name="peak_memory_mib", label="Peak memory", unit="MiB"),
        Metric(name="session_ms", label="Making the runtime's session", unit="ms", told=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A metric's value, with its 95 % confidence interval if it was sampled."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_uncertain(self) -> bool:
        """Return whether the interval of a positive value reaches further than a quarter of it to one side."""
        if self.low is None or self.high is None:
            return False
        return self.low * 1.25 < self.value or self.high > 1.25 * self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit on one metric."""

    #: Name of the metric.
    metric: str
    #: The limit itself, in the metric's unit.
    limit: float
    #: Whether the metric must not exceed the limit (True) or not fall below it (False).
    at_most: bool

    def violation(self, value: Number) -> Number:
        """Return how far ``value``, or each of an array, breaks the limit, relative to it; at most 0 if it holds."""
        scale = max(abs(self.limit), 1e-3)  # a limit of zero still needs a finite scale
        return (value - self.limit) / scale if self.at_most else (self.limit - value) / scale

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.limit:g}"
