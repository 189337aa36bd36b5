"""A map to measure, and the outcome of measuring it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.measurement import Failure, Measurement, Split, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimit:
    """What a candidate must reach on one split; its latency is not measured if it fails."""

    least_accuracy: float = -math.inf
    #: Mean divergence from full precision.
    most_divergence: float = math.inf

    def holds(self, accuracy: float, divergence: float) -> bool:
        """Return whether a quality is within the limit."""
        return accuracy >= self.least_accuracy and divergence <= self.most_divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """A measured map or a limit that a candidate must beat on latency, unless it beats it on quality."""

    #: Latency relative to full precision, in the first workload that is timed.
    latency_ratio: float
    #: A candidate with higher accuracy may be slower; None if accuracy does not count.
    accuracy: float | None = None
    #: A candidate with lower divergence may be slower; None if divergence does not count.
    divergence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One map to measure."""

    #: Number given by the driver; the outcome carries it too.
    number: int
    #: Layer name -> choice name.
    choices: Mapping[str, str]
    #: Backend that runs it; empty means the one whose full precision it is compared with.
    backend: str = ""
    #: Split -> limit of the quality on it.
    limits: Mapping[Split, QualityLimit] = field(default_factory=dict)
    #: Workloads to time at the first batch size, and at all sizes if the forward pass is one of them; None times all.
    workloads: tuple[Workload, ...] | None = None
    #: Whether to measure at full fidelity: more timed passes, and accuracy on held-out data as well.
    final: bool = False
    #: Seconds that timing each workload may take; it then ends after its least rounds. Infinite without a time limit.
    timing_s: float = math.inf
    #: A candidate that is slower than an incumbent without better quality is hopeless, so its timing may stop early.
    incumbents: tuple[Incumbent, ...] = ()

    def within_limit(self, split: Split, accuracy: float, divergence: float) -> bool:
        """Return whether the quality on a split is within its limit."""
        return split not in self.limits or self.limits[split].holds(accuracy, divergence)

    def slowest_hopeful(self, accuracy: float, divergence: float) -> float:
        """Return the latency ratio above which the candidate is hopeless, given its quality; infinity if none."""
        beating = (
            incumbent.latency_ratio
            for incumbent in self.incumbents
            if (incumbent.accuracy is None or accuracy <= incumbent.accuracy)
            and (incumbent.divergence is None or divergence >= incumbent.divergence)
        )
        return min(beating, default=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a submitted candidate."""

    candidate: Candidate
    result: Measurement | Failure
    #: Number of times a worker started it; 1 if nothing went wrong.
    attempts: int
    #: Name of the process or actor that measured it.
    worker: str
