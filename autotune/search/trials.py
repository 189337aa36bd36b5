"""Builds the recorded trial from a proposal and its outcome."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint, ratio_of
from autotune.metrics.from_measurement import Reference, figures_of
from search_spaces.choice import FULL_PRECISION
from search_spaces.quantization_map import map_key
from workers.candidate import Outcome
from workers.measurement import Failure, FailureCause, Measurement, Workload
from workers.timing.estimates import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial:
    """A trial before its map is measured."""

    job_id: str
    number: int
    kind: TrialKind
    #: Name for people; None for sampled maps.
    label: str | None
    #: Layer name -> choice name.
    choices: Mapping[str, str]
    #: Backend that runs the map; see ``TrialRecord``.
    backend: str = ""

    @property
    def key(self) -> str:
        """The ``map_key`` of the map."""
        return map_key(self.choices, self.backend)

    def ruled_out(self, figures: Mapping[str, Figure], constraints: Sequence[Constraint]) -> TrialRecord:
        """Return the trial of a map that never runs, because figures known without measurement break a constraint."""
        broken = violations(figures, constraints)
        return self._record(
            state=TrialState.REJECTED,
            figures=figures,
            violations=broken,
            attempts=0,
            message=f"not run: breaks {', '.join(name for name, by in broken.items() if by > 0)}",
        )

    def finished(
        self,
        outcome: Outcome,
        reference: Reference | None,
        constraints: Sequence[Constraint],
        sampler_state: Mapping[str, int],
        requests_per_second: float | None = None,
    ) -> TrialRecord:
        """Return the trial of a map that was run.

        Args:
            outcome: the measurement or the failure.
            reference: figures of full precision; None if this is full precision.
            constraints: the job's limits.
            sampler_state: what the sampler needs to continue after a restart.
            requests_per_second: the load that response times are computed for; None without one.
        """
        result = outcome.result
        if isinstance(result, Failure):
            trial = self._failed(result.cause, result.message, outcome)
        else:
            figures = figures_of(result, reference or Reference.of(result), requests_per_second)
            if not self.backend and set(self.choices.values()) == {FULL_PRECISION.name}:
                # Relative to itself, by definition; what was measured is noise.
                own = {ratio_of(workload).name: Figure(value=1.0) for workload in Workload}
                figures |= {name: figure for name, figure in own.items() if name in figures}
            trial = self._measured(result, outcome, figures, constraints)
        return dataclasses.replace(trial, sampler_state=dict(sampler_state))

    def _measured(
        self,
        result: Measurement,
        outcome: Outcome,
        figures: Mapping[str, Figure],
        constraints: Sequence[Constraint],
    ) -> TrialRecord:
        wrong = [name for name, figure in figures.items() if not math.isfinite(figure.value)]
        if wrong:
            return self._failed(FailureCause.ERROR, f"{', '.join(wrong)} is not a finite number", outcome)
        broken = violations(figures, constraints)
        why_rejected = None
        if not result.latency:
            where = " on shifted data" if result.shifted else ""
            why_rejected = f"latency not measured: the quality{where} breaks a limit"
        elif result.gave_up:
            passes = len(result.latency[0].candidate_ms)
            why_rejected = f"given up after {passes} passes: slower than a limit, or than maps that lose no more"
        return self._record(
            state=TrialState.REJECTED if why_rejected else TrialState.COMPLETE,
            figures=figures,
            violations=broken,
            attempts=outcome.attempts,
            message=why_rejected or (result.held_out_missing and f"no held-out accuracy: {result.held_out_missing}"),
            environment=dataclasses.asdict(result.environment),
            worker=outcome.worker,
            seconds=result.seconds,
            forward_seconds=result.forward_seconds,
        )

    def _failed(self, cause: FailureCause, message: str, outcome: Outcome) -> TrialRecord:
        return self._record(
            state=TrialState.FAILED,
            attempts=outcome.attempts,
            failure=cause,
            message=message,
            worker=outcome.worker,
        )

    def _record(self, **known: object) -> TrialRecord:
        return TrialRecord(
            job_id=self.job_id,
            number=self.number,
            kind=self.kind,
            label=self.label,
            choices=dict(self.choices),
            backend=self.backend,
            key=self.key,
            finished_at=now(),
            **known,  # type: ignore[arg-type]
        )
