"""The ``Pool`` seam: where candidates are measured."""

from dataclasses import dataclass
from typing import Protocol

from workers.candidate import Candidate, Outcome
from workers.setup import ModelDescription, Probes

#: How often a candidate whose worker dies is tried before it is a recorded failure.
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster has for the workers of all jobs."""

    cpus: float
    gpus: float
    #: CPUs of the smallest machine that has any.
    machine_cpus: float
    #: Kinds of hardware that workers on it may be of; empty if that is not known.
    kinds: frozenset[str] = frozenset()

    def cpus_per_worker(self, wanted: float | None, count: int) -> float:
        """Return the CPUs of one of ``count`` workers; without a wish they share a machine."""
        return wanted if wanted is not None else max(1.0, self.machine_cpus // count)


class Pool(Protocol):
    """Measures candidates. Each submitted candidate comes back exactly once, in any order.

    A candidate that raises an error is a ``Failure`` at once; one whose worker dies or hangs is
    tried again on a fresh worker, ``MAX_ATTEMPTS`` times in all. The pool never raises because of a
    candidate, only ``PoolError`` when no worker can be had at all: ``ClusterLostError`` if that may pass.
    """

    #: Candidates that can be measured at the same time, 0 while others have the workers; more may be submitted.
    slots: int
    #: Whether candidates beyond those wait for a worker to be free; a pool that measures in process makes the driver
    #: wait instead.
    queues: bool

    def capacity(self) -> Capacity | None:
        """Return what the pool's workers share with those of other jobs; None if they have it to themselves."""
        ...

    def resize(self, count: int) -> None:
        """Have ``count`` workers from now on; one that is too many ends when it has measured its candidate."""
        ...

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
