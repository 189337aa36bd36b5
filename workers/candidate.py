"""A map to measure, and what became of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workers.measurement import Failure, Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """Something that candidates must be faster than, unless they are better than it."""

    #: Latency relative to full precision.
    latency_ratio: float
    #: Accuracy that excuses a slower candidate if it has more; None if accuracy does not count.
    accuracy: float | None = None
    #: Divergence that excuses a slower candidate if it has less; None if divergence does not count.
    divergence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One map to measure."""

    #: The driver's number for it; comes back with the outcome.
    number: int
    #: Layer name -> choice name.
    choices: Mapping[str, str]
    #: Latency is not measured if the accuracy is below this; None always measures it.
    accuracy_floor: float | None = None
    #: The same for the accuracy on shifted data.
    shifted_floor: float | None = None
    #: Measured at full fidelity: more passes, and the accuracy on held-out data too.
    final: bool = False
    #: A candidate slower than one of them, and no better, is hopeless; its latency need not be measured to the end.
    incumbents: tuple[Incumbent, ...] = ()

    def slowest_hopeful(self, accuracy: float, divergence: float) -> float:
        """Return the latency ratio from which on the candidate is hopeless, given its quality; infinity if none."""
        beating = (
            incumbent.latency_ratio
            for incumbent in self.incumbents
            if (incumbent.accuracy is None or accuracy <= incumbent.accuracy)
            and (incumbent.divergence is None or divergence >= incumbent.divergence)
        )
        return min(beating, default=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a submitted candidate."""

    candidate: Candidate
    result: Measurement | Failure
    #: Times it was started, 1 if nothing went wrong.
    attempts: int
    #: Process or actor that measured it.
    worker: str
