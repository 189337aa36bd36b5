"""The ``Pool`` seam: where candidates are measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from workers.measurement import Failure, Measurement
from workers.setup import ModelDescription, Probes

#: How often a candidate whose worker dies is tried before it is a recorded failure.
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One map to measure."""

    #: The driver's number for it; comes back with the outcome.
    number: int
    #: Layer name -> choice name.
    choices: Mapping[str, str]
    #: Latency is not measured if the accuracy is below this; None always measures it.
    accuracy_floor: float | None = None
    #: Measured at full fidelity: more passes, and the accuracy on held-out data too.
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a submitted candidate."""

    candidate: Candidate
    result: Measurement | Failure
    #: Times it was started, 1 if nothing went wrong.
    attempts: int
    #: Process or actor that measured it.
    worker: str


class Pool(Protocol):
    """Measures candidates. Each submitted candidate comes back exactly once, in any order.

    A candidate that raises an error is a ``Failure`` at once; one whose worker dies or hangs is
    tried again on a fresh worker, ``MAX_ATTEMPTS`` times in all. The pool never raises because of a
    candidate, only ``PoolError`` when no worker can be had at all.
    """

    #: Candidates that can be measured at the same time; more may be submitted.
    slots: int

    def describe(self) -> ModelDescription:
        """Return what the workers say about the model; waits until one is ready."""
        ...

    def probe(self) -> Probes:
        """Return what to expect of every layer and choice; nothing may be running meanwhile.

        Raises:
            PoolError: if the workers cannot probe the model.
        """
        ...

    def submit(self, candidate: Candidate) -> None:
        """Queue a candidate and return at once, or, in process, after measuring it."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes that arrived since the last call, waiting for at least one.

        Returns an empty list if none arrives within ``timeout_s`` seconds.
        """
        ...

    def close(self) -> None:
        """Free the workers; candidates still queued or running are dropped. Safe to call twice."""
        ...
