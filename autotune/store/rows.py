"""Conversion of records to rows and back: pure functions, one pair per table."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from autotune.jobs.records import (
    Directions,
    EventRecord,
    HeldJob,
    JobRecord,
    JobStage,
    JobState,
    Order,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.timestamps import now
from workers.measurement import FailureCause, LatencySamples, Samples, Workload
from workers.recovered import RecoveryReport
from workers.setup import Estimator, LayerProbe, ModelDescription, Probes
from workers.timing.estimates import Figure

Row = Mapping[Any, Any]


class PackedChoices(Mapping[str, str]):
    """Layer name -> choice name, unpacked on first access, because most readers of many trials need no choices."""

    __slots__ = ("_layers", "_packed", "_unpacked")

    def __init__(self, layers: Sequence[str], packed: str) -> None:
        self._layers, self._packed = layers, packed
        self._unpacked: dict[str, str] | None = None

    def __getitem__(self, layer: str) -> str:
        if self._unpacked is None:
            self._unpacked = self._unpack()
        return self._unpacked[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return repr(self._unpack())

    def values(self) -> ValuesView[str]:
        """Return the choices, without caching the unpacked form."""
        return self._unpack().values()

    def _unpack(self) -> dict[str, str]:
        return dict(zip(self._layers, self._packed.split(","), strict=True)) if self._layers else {}


_DESCRIPTION = TypeAdapter(ModelDescription)
_RECOVERY = TypeAdapter(RecoveryReport)
_SAMPLES = np.dtype("<f8")


def job_row(job: JobRecord) -> dict[str, Any]:
    """Return a job's row."""
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    order = fields.pop("order")
    described = None if job.description is None else _DESCRIPTION.dump_python(job.description, mode="json")
    return fields | {
        "spec": dict(fields.pop("document")),
        "state": job.state.value,
        "description": described,
        "requested": order and order.value,
        "stage": job.stage and stage_row(job.stage),
    }


def stage_row(stage: JobStage) -> dict[str, Any]:
    """Return the value of a stage's column."""
    return dataclasses.asdict(stage)


def job_stage(column: Mapping[str, Any] | None) -> JobStage | None:
    """Return the stage from its column."""
    return None if column is None else JobStage(**column)


def job_record(row: Row) -> JobRecord:
    """Return the job from its row."""
    fields = dict(row)
    order = fields.pop("requested")
    if fields["description"] is not None:
        fields["description"] = _DESCRIPTION.validate_python(fields["description"])
    fields["stage"] = job_stage(fields["stage"])
    state, document = JobState(fields.pop("state")), fields.pop("spec")
    return JobRecord(**fields, document=document, state=state, order=Order(order) if order else None)


def is_same_submission(found: JobRecord, job: JobRecord) -> bool:
    """Return whether a recorded job equals a new one, as it does when a caller retries after a lost response."""
    same = ("id", "name", "owner", "created_at", "document")
    return all(getattr(found, name) == getattr(job, name) for name in same)


def directions(requested: str | None, document: Mapping[str, Any]) -> Directions:
    """Return the directions from columns of a job's row."""
    order = Order(requested) if requested else None
    search = document["search"]
    return Directions(order=order, trials=search["trials"], time_limit_s=search.get("time_limit_s"))


def held_job(job_id: str, driver: str | None, epoch: int, document: Mapping[str, Any], kind: str | None) -> HeldJob:
    """Return the held job from columns of its row; ``kind`` is the hardware kind of its description, if any."""
    wanted = {name: document["workers"][name] for name in ("count", "cpus", "gpus")}
    return HeldJob(job_id=job_id, driver=driver or "", epoch=epoch, kind=kind or "", **wanted)


def layers_key(layers: Iterable[str]) -> tuple[str, list[str]]:
    """Return the key of a list of layers, and the list in its stored form."""
    names = list(layers)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest(), names


def trial_row(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial's own row; its figures, latencies and list of layers are stored in separate rows."""
    return {
        "job_id": trial.job_id,
        "number": trial.number,
        "kind": trial.kind.value,
        "label": trial.label,
        "state": trial.state.value,
        "map_key": trial.key,
        "layers_key": layers_key(trial.choices)[0],
        "choices": ",".join(trial.choices.values()),
        "backend": trial.backend,
        "parent": trial.parent,
        "recovery": None if trial.recovery is None else _RECOVERY.dump_python(trial.recovery, mode="json"),
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


def trial_record(row: Row, layers: Sequence[str], figures: Mapping[str, Figure]) -> TrialRecord:
    """Return the trial from its row, its list of layers and its figures."""
    fields = dict(row)
    failure, recovery = fields.pop("failure"), fields.pop("recovery")
    del fields["layers_key"]
    return TrialRecord(
        key=fields.pop("map_key"),
        kind=TrialKind(fields.pop("kind")),
        state=TrialState(fields.pop("state")),
        failure=FailureCause(failure) if failure else None,
        choices=PackedChoices(layers, fields.pop("choices")),
        recovery=None if recovery is None else _RECOVERY.validate_python(recovery),
        figures=figures,
        **fields,
    )


def figure_rows(trial: TrialRecord) -> list[dict[str, Any]]:
    """Return one row per figure of a trial."""
    return [
        _key(trial) | {"metric": name, "value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in trial.figures.items()
    ]


def latency_rows(result: TrialResult) -> list[dict[str, Any]]:
    """Return one row per workload and batch size in which a trial was timed."""
    return [
        _key(result.trial)
        | {
            "position": position,
            "batch_size": latency.batch_size,
            "workload": latency.workload.value,
            "candidate_ms": _packed(latency.candidate_ms),
            "reference_ms": _packed(latency.reference_ms),
        }
        for position, latency in enumerate(result.latency)
    ]


def latency_samples(rows: Iterable[Row]) -> tuple[LatencySamples, ...]:
    """Return the latencies from rows ordered by position."""
    return tuple(
        LatencySamples(
            batch_size=row["batch_size"],
            workload=Workload(row["workload"]),
            candidate_ms=_unpacked(row["candidate_ms"]),
            reference_ms=_unpacked(row["reference_ms"]),
        )
        for row in rows
    )


def artifact_rows(result: TrialResult) -> list[dict[str, Any]]:
    """Return one row per artifact that is recorded with a trial."""
    return [
        {"sha256": artifact.sha256, "kind": artifact.kind.value, "data": artifact.data, "created_at": now()}
        for artifact in result.artifacts
    ]


def event_row(job_id: str, position: int, event: EventRecord) -> dict[str, Any]:
    """Return an event's row."""
    return {"job_id": job_id, "position": position, "at": event.at, "kind": event.kind, "message": event.message}


def probes_row(key: str, probes: Probes) -> dict[str, Any]:
    """Return the row of probes; their layers are stored in separate rows."""
    return {
        "key": key,
        "pass_ms": probes.pass_ms,
        "estimator": probes.estimator.value,
        "samples": probes.samples,
        "seconds": probes.seconds,
        "created_at": now(),
    }


def layer_probe_rows(key: str, probes: Probes) -> list[dict[str, Any]]:
    """Return one row per layer and choice."""
    return [
        {"key": key, "position": position} | dataclasses.asdict(probe) for position, probe in enumerate(probes.layers)
    ]


def probes(row: Row, layers: Iterable[Row]) -> Probes:
    """Return the probes from their row and the rows of their layers, ordered by position."""
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
