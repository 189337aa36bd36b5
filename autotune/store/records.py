"""What the store holds, as plain data: one record type, one table."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autotune.metrics import Figure
from workers.measurement import FailureCause, LatencySamples
from workers.setup import ModelDescription


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    #: Recorded; no driver has started it.
    CREATED = "created"
    #: A driver is searching.
    RUNNING = "running"
    #: Budget used up, or the whole space measured.
    FINISHED = "finished"
    #: Stopped by its user; can be resumed.
    INTERRUPTED = "interrupted"
    #: Stopped by an error; can be resumed.
    FAILED = "failed"

    @property
    def is_live(self) -> bool:
        """Return whether the job may still change by itself."""
        return self in (JobState.CREATED, JobState.RUNNING)


class TrialKind(enum.StrEnum):
    """Why a candidate was measured."""

    #: Full precision or a uniform map: always measured in full.
    BASELINE = "baseline"
    #: Proposed by the sampler.
    SEARCH = "search"
    #: A map that stood out in the end, measured again at full fidelity.
    FINAL = "final"


class TrialState(enum.StrEnum):
    """What became of a candidate."""

    #: All figures were measured.
    COMPLETE = "complete"
    #: Ruled out early by a constraint: some figures are missing.
    REJECTED = "rejected"
    #: Could not be measured.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A tuning job."""

    #: Short unique id.
    id: str
    #: The user's name for it; need not be unique.
    name: str
    #: Registered task name.
    task: str
    #: The job file as JSON-ready data.
    spec: Mapping[str, Any]
    state: JobState
    #: Time it was submitted, in UTC.
    created_at: datetime
    #: Time of the last change, in UTC.
    updated_at: datetime
    #: What the workers said about the model; None until a worker was ready.
    description: ModelDescription | None = None
    #: Why it failed; None unless it did.
    error: str | None = None
    #: ``host:pid`` of the driver that runs or last ran it.
    driver: str | None = None
    #: Seconds spent searching, over all drivers.
    elapsed_s: float = 0.0
    #: Counts every change of the job, its trials and its front; readers cache by it.
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A candidate and what is known about it. Written once, when it is finished."""

    job_id: str
    #: Number within the job, from 0 in the order proposed.
    number: int
    kind: TrialKind
    #: Name for people, such as ``uniform int8_static``; None for sampled maps.
    label: str | None
    state: TrialState
    #: Layer name -> choice name, in execution order.
    choices: Mapping[str, str]
    #: ``search_spaces.quantization_map.map_key`` of the choices; unique within the job.
    key: str
    #: Metric name -> figure; holds what was measured.
    figures: Mapping[str, Figure] = field(default_factory=dict)
    #: Constraint metric -> violation, at most 0 if it holds; holds what is known.
    violations: Mapping[str, float] = field(default_factory=dict)
    #: Times it was started; 0 if it was ruled out without running.
    attempts: int = 1
    #: Why it failed; None unless it did.
    failure: FailureCause | None = None
    #: One line about the failure or rejection.
    message: str | None = None
    #: What the sampler needs to go on after a restart; JSON-ready.
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    #: Where it ran: JSON-ready form of ``workers.measurement.Environment``; empty if it did not.
    environment: Mapping[str, Any] = field(default_factory=dict)
    #: Process or actor that measured it.
    worker: str = ""
    #: Wall-clock seconds of measuring, and the part of it spent in forward passes.
    seconds: float = 0.0
    forward_seconds: float = 0.0
    #: When it was finished, in UTC.
    finished_at: datetime

    @property
    def feasible(self) -> bool:
        """Return whether everything was measured and every constraint holds."""
        return self.state is TrialState.COMPLETE and all(v <= 0 for v in self.violations.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRecord:
    """The Pareto front as it stood after one trial. A job keeps every revision."""

    #: Trials recorded when this front was computed, the last one included.
    trials: int
    #: Numbers of the trials on the front, ascending.
    members: tuple[int, ...]
    #: Hypervolume in the job's normalised objective space.
    hypervolume: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that happened to a job."""

    at: datetime
    #: Kind for machines, such as ``worker_replaced``.
    kind: str
    #: Sentence for people.
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Everything one commit writes: the trial, its raw latencies, the new front, what happened."""

    trial: TrialRecord
    latency: tuple[LatencySamples, ...] = ()
    #: The front after this trial; None if it did not change.
    front: FrontRecord | None = None
    events: tuple[EventRecord, ...] = ()
    #: Seconds to add to the job's elapsed time.
    elapsed_s: float = 0.0
