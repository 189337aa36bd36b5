"""Builds the recorded trial from a proposal and its outcome."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.recovery import check_recoverable
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import METRICS, Constraint, ratio_of
from autotune.metrics.from_measurement import Reference, figures_of
from search_spaces.choice import FULL_PRECISION
from search_spaces.quantization_map import map_key
from workers.candidate import Outcome
from workers.measurement import Failure, FailureCause, Measurement, Workload
from workers.recovered import Recovered
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
    #: sha256 of the weights that a recovered map has instead of the model's own; empty for other maps.
    learned: str = ""

    @property
    def key(self) -> str:
        """The ``map_key`` of the map."""
        return map_key(self.choices, self.backend, self.learned)

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
        wrong = _not_finite(figures)
        if wrong is not None:
            return self._failed(FailureCause.ERROR, wrong, outcome)
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
            message=why_rejected or _lacking(result),
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


def recovered_trial(
    parent: TrialRecord, recovered: Recovered, reference: Reference, constraints: Sequence[Constraint], number: int
) -> TrialRecord | None:
    """Return the trial of a recovered map: its own quality, with the speed and memory of its parent.

    Args:
        parent: the trial whose map was recovered.
        recovered: what recovery did, and the quality of the map with the learned weights.
        reference: figures of full precision.
        constraints: the job's limits.
        number: number of the new trial.

    Returns:
        None if the map was kept as it was, so that there is nothing new to record.

    Raises:
        ConflictError: see ``check_recoverable``.
    """
    check_recoverable(parent)
    measured = recovered.measurement
    if measured is None:
        return None
    planned = PlannedTrial(
        job_id=parent.job_id,
        number=number,
        kind=TrialKind.RECOVERED,
        label=parent.label,
        choices=parent.choices,
        backend=parent.backend,
        learned=recovered.report.sha256,
    )
    quality = {name: figure for name, figure in figures_of(measured, reference).items() if METRICS[name].is_quality}
    figures = quality | {name: figure for name, figure in parent.figures.items() if not METRICS[name].is_quality}
    wrong = _not_finite(quality)
    found = (
        {"state": TrialState.COMPLETE, "figures": figures, "violations": violations(figures, constraints)}
        | {"message": _lacking(measured)}
        if wrong is None
        else {"state": TrialState.FAILED, "failure": FailureCause.ERROR, "message": wrong}
    )
    return planned._record(
        parent=parent.number,
        recovery=recovered.report,
        environment=dataclasses.asdict(measured.environment),
        seconds=measured.seconds,
        forward_seconds=measured.forward_seconds,
        **found,
    )


def _not_finite(figures: Mapping[str, Figure]) -> str | None:
    """Return which figures are not finite numbers, as a sentence; None if all are."""
    wrong = [name for name, figure in figures.items() if not math.isfinite(figure.value)]
    return f"{', '.join(wrong)} is not a finite number" if wrong else None


def _lacking(result: Measurement) -> str | None:
    """Return what a complete measurement lacks, as a sentence; None if nothing."""
    return result.held_out_missing and f"no held-out accuracy: {result.held_out_missing}"
