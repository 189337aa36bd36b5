"""Records to rows and back; pure functions, one pair a table."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from autotune.metrics import Figure
from autotune.store.clock import now
from autotune.store.records import (
    EventRecord,
    JobRecord,
    JobState,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from workers.measurement import FailureCause, LatencySamples, Samples
from workers.setup import Estimator, LayerProbe, ModelDescription, Probes

Row = Mapping[Any, Any]

_DESCRIPTION = TypeAdapter(ModelDescription)
_SAMPLES = np.dtype("<f8")


def job_row(job: JobRecord) -> dict[str, Any]:
    """Return a job's row."""
    return job_columns(dataclasses.asdict(job) | {"description": job.description})


def job_columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a job record as columns."""
    columns = dict(fields)
    if columns.get("description") is not None:
        columns["description"] = _DESCRIPTION.dump_python(columns["description"], mode="json")
    if "state" in columns:
        columns["state"] = JobState(columns["state"]).value
    return columns


def job_record(row: Row) -> JobRecord:
    """Return the job in a row."""
    fields = dict(row)
    if fields["description"] is not None:
        fields["description"] = _DESCRIPTION.validate_python(fields["description"])
    return JobRecord(**fields | {"state": JobState(fields["state"])})


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial's own row; choices and figures have rows of their own."""
    return {
        "job_id": trial.job_id,
        "number": trial.number,
        "kind": trial.kind.value,
        "label": trial.label,
        "state": trial.state.value,
        "map_key": trial.key,
        "attempts": trial.attempts,
        "failure": trial.failure.value if trial.failure else None,
        "message": trial.message,
        "violations": dict(trial.violations),
        "sampler_state": dict(trial.sampler_state),
        "environment": dict(trial.environment),
        "worker": trial.worker,
        "seconds": trial.seconds,
        "forward_seconds": trial.forward_seconds,
        "finished_at": trial.finished_at,
    }


def trial_record(row: Row, choices: Mapping[str, str], figures: Mapping[str, Figure]) -> TrialRecord:
    """Return the trial in its row and the rows of its parts."""
    fields = dict(row)
    failure = fields.pop("failure")
    return TrialRecord(
        key=fields.pop("map_key"),
        kind=TrialKind(fields.pop("kind")),
        state=TrialState(fields.pop("state")),
        failure=FailureCause(failure) if failure else None,
        choices=choices,
        figures=figures,
        **fields,
    )


def figure_rows(trial: TrialRecord) -> list[dict[str, Any]]:
    """Return a row for each figure of a trial."""
    return [
        _key(trial) | {"metric": name, "value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in trial.figures.items()
    ]


def choice_rows(trial: TrialRecord) -> list[dict[str, Any]]:
    """Return a row for each layer of a trial's map, in execution order."""
    return [
        _key(trial) | {"position": position, "layer": layer, "choice": choice}
        for position, (layer, choice) in enumerate(trial.choices.items())
    ]


def latency_rows(result: TrialResult) -> list[dict[str, Any]]:
    """Return a row for each batch size a trial was timed at."""
    return [
        _key(result.trial)
        | {
            "position": position,
            "batch_size": latency.batch_size,
            "candidate_ms": _packed(latency.candidate_ms),
            "reference_ms": _packed(latency.reference_ms),
        }
        for position, latency in enumerate(result.latency)
    ]


def latency_samples(rows: Iterable[Row]) -> tuple[LatencySamples, ...]:
    """Return the latencies in rows ordered by position."""
    return tuple(
        LatencySamples(
            batch_size=row["batch_size"],
            candidate_ms=_unpacked(row["candidate_ms"]),
            reference_ms=_unpacked(row["reference_ms"]),
        )
        for row in rows
    )


def event_row(job_id: str, position: int, event: EventRecord) -> dict[str, Any]:
    """Return an event's row."""
    return {"job_id": job_id, "position": position, "at": event.at, "kind": event.kind, "message": event.message}


def probes_row(key: str, probes: Probes) -> dict[str, Any]:
    """Return the row of probes; the layers have rows of their own."""
    return {
        "key": key,
        "pass_ms": probes.pass_ms,
        "estimator": probes.estimator.value,
        "samples": probes.samples,
        "seconds": probes.seconds,
        "created_at": now(),
    }


def layer_probe_rows(key: str, probes: Probes) -> list[dict[str, Any]]:
    """Return a row for each layer and choice."""
    return [
        {"key": key, "position": position} | dataclasses.asdict(probe) for position, probe in enumerate(probes.layers)
    ]


def probes(row: Row, layers: Iterable[Row]) -> Probes:
    """Return the probes in their row and the rows of their layers, ordered by position."""
    return Probes(
        layers=tuple(
            LayerProbe(**{name: layer[name] for name in ("layer", "choice", "divergence", "latency_ms")})
            for layer in layers
        ),
        pass_ms=row["pass_ms"],
        estimator=Estimator(row["estimator"]),
        samples=row["samples"],
        seconds=row["seconds"],
    )


def _key(trial: TrialRecord) -> dict[str, Any]:
    return {"job_id": trial.job_id, "number": trial.number}


def _packed(samples: Samples) -> bytes:
    return samples.astype(_SAMPLES).tobytes()


def _unpacked(blob: bytes) -> Samples:
    return np.frombuffer(blob, dtype=_SAMPLES).astype(np.float64)
