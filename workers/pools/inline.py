"""The pool in the driver's own process: for tests, small machines and debugging."""

import math
import os
from collections.abc import Mapping

from workers.candidate import Candidate, Outcome
from workers.errors import PoolError
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Failure, Measurement
from workers.pools.failure import failure_of, starting
from workers.pools.hardware_kinds import is_called
from workers.progress import Report, silent
from workers.recovered import Recovered, RecoverySettings
from workers.setup import ModelDescription, Probes, WorkerSetup


class InlinePool:
    """Measures each candidate as it is submitted. A candidate that kills the process kills the driver."""

    slots = 1
    queues = False

    def __init__(self, setup: WorkerSetup, hardware: str | None = None, report: Report = silent) -> None:
        """Load the task; see ``PoolSettings.hardware``. ``report`` gets every step of this process.

        Raises:
            PoolError: if this process measures on other hardware.
        """
        with starting(setup.task_file):
            self._evaluator = Evaluator(setup, report)
        kind = self.describe().environment.kind
        if hardware is not None and not is_called(kind, hardware):
            raise PoolError(
                f"workers.hardware is {hardware!r}, but this process measures on {kind!r}; "
                "run the job on such hardware, or use the pool ray on a cluster that has it"
            )
        self._outcomes: list[Outcome] = []

    def capacity(self) -> None:
        pass

    def resize(self, count: int) -> None:
        """See ``Pool.resize``; this process stays the only worker."""

    def describe(self) -> ModelDescription:
        return self._evaluator.description

    def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
        try:
            return self._evaluator.probe(budget_s, backend)
        except (Exception, SystemExit) as error:
            raise PoolError(f"probing the model failed: {failure_of(error).message}") from error

    def recover(self, choices: Mapping[str, str], backend: str, settings: RecoverySettings) -> Recovered:
        try:
            return self._evaluator.recover(choices, backend, settings)
        except (Exception, SystemExit) as error:
            raise PoolError(f"recovering the map failed: {failure_of(error).message}") from error

    def submit(self, candidate: Candidate) -> None:
        try:
            result: Measurement | Failure = self._evaluator.measure(candidate)
        except (Exception, SystemExit) as error:
            result = failure_of(error)
        worker = f"inline:{os.getpid()}"
        self._outcomes.append(Outcome(candidate=candidate, result=result, attempts=1, worker=worker))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See ``Pool.wait``; nothing is ever still running."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        self._outcomes.clear()
