"""The ``Pool`` protocol: where candidates are measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from workers.candidate import Candidate, Outcome
from workers.recovered import Recovered, RecoverySettings
from workers.setup import ModelDescription, Probes

#: Number of attempts at a candidate whose worker dies or hangs, before it is recorded as a failure.
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Resources of a cluster for the workers of all jobs."""

    cpus: float
    gpus: float
    #: CPUs of the smallest machine with any CPUs.
    machine_cpus: float
    #: Kinds of hardware that its workers may have; empty if unknown.
    kinds: frozenset[str] = frozenset()

    def cpus_per_worker(self, wanted: float | None, count: int) -> float:
        """Return the CPUs per worker: ``wanted``, or by default the machine's CPUs divided among ``count`` workers."""
        return wanted if wanted is not None else max(1.0, self.machine_cpus // count)


class Pool(Protocol):
    """Measures candidates. Each submitted candidate is returned exactly once, in any order.

    A candidate that raises an error becomes a ``Failure`` at once. If its worker dies or hangs, the pool
    retries it on a new worker, up to ``MAX_ATTEMPTS`` attempts in all. The pool never raises because of a
    candidate. It raises ``PoolError`` only if it can get no worker at all; the subclass ``ClusterLostError`` means that
    a new cluster may help.
    """

    #: Number of candidates that can be measured at the same time; 0 while other jobs use the workers. More may be
    #: submitted.
    slots: int
    #: Whether further candidates queue for a free worker; a pool that measures in process blocks the driver instead.
    queues: bool

    def capacity(self) -> Capacity | None:
        """Return the resources that the pool shares with those of other jobs; None if it shares none."""
        ...

    def resize(self, count: int) -> None:
        """Change the number of workers to ``count``; a surplus worker first finishes its candidate."""
        ...

    def describe(self) -> ModelDescription:
        """Return the workers' description of the model."""
        ...

    def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
        """Return the predicted effects of every layer and choice on a backend; no candidate may be running.

        Args:
            budget_s: seconds that sensitivities may take; fewer samples make them less exact.
            backend: its name; empty means the one whose full precision others are compared with.

        Raises:
            PoolError: if the workers cannot probe the model.
        """
        ...

    def recover(self, choices: Mapping[str, str], backend: str, settings: RecoverySettings) -> Recovered:
        """Return a map with learned weights, and its quality; no candidate may be running.

        Args:
            choices: layer name -> choice name.
            backend: as for ``probe``.
            settings: how to learn.

        Raises:
            PoolError: if the workers cannot recover the map.
        """
        ...

    def submit(self, candidate: Candidate) -> None:
        """Queue a candidate and return at once; a pool in process returns after measuring it."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes since the last call, waiting for at least one.

        The list is empty if no outcome arrives within ``timeout_s`` seconds.
        """
        ...

    def close(self) -> None:
        """Release the workers; drop candidates that are still queued or running. Safe to call twice."""
        ...
