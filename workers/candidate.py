"""A map to measure, and the outcome of measuring it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workers.measurement import Failure, Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """A measured map or a limit that a candidate must beat on latency, unless it beats it on quality."""

    #: Latency relative to full precision.
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
    #: Latency is measured only if the accuracy reaches this floor; None always measures it.
    accuracy_floor: float | None = None
    #: Floor for the accuracy on shifted data, with the same effect.
    shifted_floor: float | None = None
    #: Whether to measure at full fidelity: more timed passes, and accuracy on held-out data as well.
    final: bool = False
    #: Seconds that timing each workload may take; it then ends after its least rounds. Infinite without a time limit.
    timing_s: float = math.inf
    #: A candidate that is slower than an incumbent without better quality is hopeless, so its timing may stop early.
    incumbents: tuple[Incumbent, ...] = ()

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
