"""The metrics that a job can optimise, limit and show. Each entry fully describes one metric."""

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workers.measurement import Split, Workload

#: One value or an array of values.
Number = TypeVar("Number", float, npt.NDArray[np.float64])

#: An end of an interval; None if it is open.
Bound = TypeVar("Bound", float, float | None)

#: A queued latency of at least this value means overload: requests arrive faster than they are served.
OVERLOADED_MS = 1e9


class Kind(enum.StrEnum):
    """What a metric measures; decides how it is compared, limited and formatted."""

    #: The task's own metric; larger is better.
    ACCURACY = "accuracy"
    #: Loss of accuracy relative to full precision.
    ACCURACY_DROP = "accuracy_drop"
    #: Divergence of the outputs from full precision.
    DIVERGENCE = "divergence"
    #: A percentile of a latency.
    LATENCY = "latency"
    #: Median latency relative to full precision.
    LATENCY_RATIO = "latency_ratio"
    #: Bytes of weights, or of everything.
    MEMORY = "memory"
    #: One-time work of a runtime before the first pass.
    PREPARATION = "preparation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity that is measured for every candidate."""

    #: Name in job files, the database and ``--json`` output; ends in the unit if there is one.
    name: str
    kind: Kind
    #: Name for people, and a short one as a column heading.
    label: str
    heading: str = ""
    #: Unit for people, empty for a pure number.
    unit: str = ""
    #: Data split of a quality metric.
    split: Split = Split.EVALUATION
    #: Timed workload of a latency.
    workload: Workload = Workload.FORWARD
    #: Percentile of a latency.
    percent: int | None = None
    #: Whether requests wait in line before they are served.
    queued: bool = False
    #: Fewest latency samples for a meaningful percentile; 0 for other metrics.
    min_repeats: int = 0
    #: Whether a job can limit it.
    can_be_limited: bool = False
    #: Whether it is reported but cannot be an objective or a limit: only final measurements or some backends have it.
    reported_only: bool = False

    @property
    def maximise(self) -> bool:
        """Whether larger is better."""
        return self.kind is Kind.ACCURACY

    @property
    def logarithmic(self) -> bool:
        """Whether ratios matter instead of differences, so plots, knees and hypervolumes use log10."""
        return self.kind is Kind.DIVERGENCE

    @property
    def is_quality(self) -> bool:
        """Whether it measures the quality of outputs."""
        return self.kind in (Kind.ACCURACY, Kind.ACCURACY_DROP, Kind.DIVERGENCE)

    @property
    def is_latency(self) -> bool:
        """Whether it measures latency in production."""
        return self.kind in (Kind.LATENCY, Kind.LATENCY_RATIO)

    @property
    def is_relative(self) -> bool:
        """Whether it is relative to full precision by definition."""
        return self.kind in (Kind.ACCURACY_DROP, Kind.DIVERGENCE, Kind.LATENCY_RATIO)

    @property
    def title(self) -> str:
        """The label with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def is_overloaded(self, value: float) -> bool:
        """Return whether a value means that requests arrive faster than they are served."""
        return self.queued and value >= OVERLOADED_MS

    def text(self, value: float) -> str:
        """Format a value for people with its significant digits, without its unit; a latency ratio as a speedup."""
        if not math.isfinite(value):
            return "unknown"
        if self.is_overloaded(value):
            return "overloaded"
        match self.kind:
            case Kind.DIVERGENCE:
                return f"{value:.1e}" if value else "0"
            case Kind.ACCURACY_DROP:
                return f"{100 * value:.2f} %"
            case Kind.ACCURACY:
                return f"{value:.4f}"
            case Kind.LATENCY_RATIO:
                return f"{1.0 / value:.2f}x" if value else "unknown"
        return _three_digits(value)

    def shown_order(self, low: Bound, high: Bound) -> tuple[Bound, Bound]:
        """Return the ends of an interval as people read them: the end whose text is the smaller number comes first."""
        return (high, low) if self.kind is Kind.LATENCY_RATIO else (low, high)

    def text_with_unit(self, value: float) -> str:
        """Format a value for people, with its unit if the text is a number."""
        text = self.text(value)
        if self.kind is Kind.LATENCY_RATIO and text[-1] == "x":
            return f"{text} as fast"
        return f"{text} {self.unit}" if self.unit and text[-1].isdigit() else text


def _three_digits(value: float) -> str:
    """Format ``value`` with three significant digits, without an exponent if that is readable."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


#: Workload -> its name for people.
WORKLOADS = {
    Workload.FORWARD: "Latency",
    Workload.PREFILL: "Time to first token",
    Workload.DECODE: "Time per output token",
    Workload.REQUEST: "Time of a whole request",
    Workload.SAMPLING: "Time of a whole sample",
}
#: Name of a latency under load for people.
UNDER_LOAD = "Response time under load"
#: Latency metric -> column heading.
_HEADINGS = {
    "latency_p50_ms": "p50 ms",
    "latency_p95_ms": "p95 ms",
    "prefill_latency_p50_ms": "first ms",
    "decode_latency_p50_ms": "token ms",
    "request_latency_p50_ms": "req. ms",
    "queued_latency_p95_ms": "load p95",
    "sampling_latency_p50_ms": "sample ms",
}


def _of_workload(workload: Workload) -> Iterator[Metric]:
    prefix, label = "" if workload is Workload.FORWARD else f"{workload}_", WORKLOADS[workload]
    yield from _percentiles(prefix, label, workload)
    name = f"{prefix}latency_ratio"
    label = f"{label} p50 relative to full precision"
    yield Metric(name=name, kind=Kind.LATENCY_RATIO, label=label, heading="speedup", workload=workload)


def _percentiles(prefix: str, label: str, workload: Workload, *, queued: bool = False) -> Iterator[Metric]:
    for percent, repeats in {50: 0, 90: 30, 95: 60, 99: 500}.items():
        name = f"{prefix}latency_p{percent}_ms"
        yield Metric(
            name=name,
            kind=Kind.LATENCY,
            label=f"{label} p{percent}",
            heading=_HEADINGS.get(name, ""),
            unit="ms",
            workload=workload,
            percent=percent,
            queued=queued,
            min_repeats=repeats,
            can_be_limited=percent != 90,
        )


def _of_split(split: Split) -> Iterator[Metric]:
    prefix = "" if split is Split.EVALUATION else f"{split}_"
    data = {Split.EVALUATION: "", Split.HELD_OUT: " on held-out data", Split.SHIFTED: " on shifted data"}[split]
    heading = {Split.EVALUATION: "accuracy", Split.SHIFTED: "shifted"}.get(split, "")
    # Only final measurements use held-out data.
    searched = split is not Split.HELD_OUT
    yield Metric(
        name=f"{prefix}accuracy", kind=Kind.ACCURACY, label=f"Accuracy{data}", heading=heading, split=split,
        can_be_limited=searched, reported_only=not searched,
    )  # fmt: skip
    yield Metric(
        name=f"{prefix}accuracy_drop", kind=Kind.ACCURACY_DROP, label=f"Accuracy drop{data}, relative", split=split,
        can_be_limited=searched, reported_only=not searched,
    )  # fmt: skip
    if searched:
        yield Metric(
            name=f"{prefix}divergence", kind=Kind.DIVERGENCE, label=f"Divergence{data or ' from full precision'}",
            heading="" if prefix else "diverg.", split=split, can_be_limited=True,
        )  # fmt: skip


#: Every metric by name. Sample counts: from n samples on, the two-sided 95 % order-statistic
#: interval of the percentile has a lower bound below the maximum (p90, p95: zero-exceedance proof,
#: 29 and 59; p99: 500, where the interval is bounded on both sides).
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(metric for split in Split for metric in _of_split(split)),
        *(metric for workload in Workload for metric in _of_workload(workload)),
        *_percentiles("queued_", UNDER_LOAD, Workload.REQUEST, queued=True),
        Metric(
            name="weight_memory_mib", kind=Kind.MEMORY, label="Weight memory", heading="MiB", unit="MiB",
            can_be_limited=True,
        ),
        Metric(name="peak_memory_mib", kind=Kind.MEMORY, label="Peak memory", unit="MiB", can_be_limited=True),
        Metric(
            name="session_ms", kind=Kind.PREPARATION, label="Making the runtime's session", unit="ms",
            reported_only=True,
        ),
    )
}  # fmt: skip


def metric_of(kind: Kind, split: Split) -> Metric:
    """Return the quality metric of a kind on one split.

    Raises:
        StopIteration: if there is no such metric.
    """
    return next(metric for metric in METRICS.values() if metric.kind is kind and metric.split is split)


def percentiles_of(workload: Workload, *, queued: bool = False) -> Mapping[int, Metric]:
    """Return percent -> latency metric of a workload."""
    return {
        metric.percent: metric
        for metric in METRICS.values()
        if metric.percent is not None and metric.workload is workload and metric.queued is queued
    }


def ratio_of(workload: Workload) -> Metric:
    """Return the metric of a workload's median latency relative to full precision."""
    return next(m for m in METRICS.values() if m.kind is Kind.LATENCY_RATIO and m.workload is workload)


def decisive_workload(objectives: Sequence[str]) -> Workload:
    """Return the workload of the first latency among the objectives, or the forward pass without one."""
    latencies = [METRICS[name] for name in objectives if METRICS[name].is_latency]
    return latencies[0].workload if latencies else Workload.FORWARD


def decisive_ratio(objectives: Sequence[str]) -> Metric:
    """Return the latency ratio that tells how much faster a job's maps are."""
    return ratio_of(decisive_workload(objectives))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A limit on one metric."""

    #: Name of the metric.
    metric: str
    #: The limit itself, in the metric's unit.
    limit: float
    #: True if the metric must not exceed the limit; False if it must not fall below it.
    at_most: bool

    @property
    def bound(self) -> str:
        """The kind of limit in words."""
        return "at most" if self.at_most else "at least"

    def violation(self, value: Number) -> Number:
        """Return how far a value, or each of an array, exceeds the limit, relative to it; at most 0 if it holds."""
        scale = abs(self.limit) or 1e-3  # a limit of zero still needs a finite scale
        return (value - self.limit) / scale if self.at_most else (self.limit - value) / scale

    def missed_by(self, value: float) -> str:
        """Return in words how far a value that breaks the limit is from it."""
        metric = METRICS[self.metric]
        if metric.is_overloaded(value):
            return f"{self.metric}: requests arrive {value / OVERLOADED_MS:.2f} times as fast as it can serve them"
        text = f"{self.metric} is {metric.text_with_unit(value)}, limit {metric.text_with_unit(self.limit)}"
        if not self.limit:
            return text
        by = self.violation(value)
        return f"{text} ({value / self.limit:.1f}x the limit)" if by >= 1.0 else f"{text} ({100.0 * by:.2g} % off)"

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.limit:g}"
