"""What the store holds, as plain data: one record type, one table."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from autotune.jobs.spec import JobSpec
from workers.measurement import FailureCause, LatencySamples
from workers.setup import ModelDescription
from workers.timing.estimates import Figure


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    #: Waits for a driver.
    QUEUED = "queued"
    #: A driver is searching, or was until it died.
    RUNNING = "running"
    #: Stopped by its user; can be resumed.
    PAUSED = "paused"
    #: Budget used up, or the whole space measured.
    FINISHED = "finished"
    #: Given up by its user; what it found is kept.
    CANCELLED = "cancelled"
    #: Stopped by an error; can be resumed.
    FAILED = "failed"

    @property
    def is_live(self) -> bool:
        """Return whether the job may still change by itself."""
        return self in (JobState.QUEUED, JobState.RUNNING)


class Order(enum.StrEnum):
    """What a user asks of a job that a driver holds."""

    PAUSE = "pause"
    CANCEL = "cancel"

    @property
    def state(self) -> JobState:
        """Return the state of a job in which the order is carried out."""
        return JobState.PAUSED if self is Order.PAUSE else JobState.CANCELLED

    @property
    def done(self) -> str:
        """Return what is told of a job in which the order is carried out."""
        return f"{self.state.capitalize()} by its user"


class Scope(enum.StrEnum):
    """What the holder of a token may do; each scope includes the ones before it."""

    #: Look at everything.
    VIEWER = "viewer"
    #: Submit jobs, and steer one's own.
    SUBMITTER = "submitter"
    #: Steer everybody's jobs, and hand out tokens.
    ADMIN = "admin"

    def includes(self, needed: "Scope") -> bool:
        """Return whether a token of this scope may do what ``needed`` is for."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


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


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A tuning job."""

    #: Short unique id.
    id: str
    #: The user's name for it; need not be unique.
    name: str
    #: Registered task name.
    task: str
    #: The job file as it was recorded, JSON-ready; its key is ``spec`` in the API and the database.
    document: Annotated[Mapping[str, Any], Field(alias="spec")]
    state: JobState
    #: Time it was submitted, in UTC.
    created_at: datetime
    #: Time of the last change, in UTC.
    updated_at: datetime
    #: What the workers said about the model; None until a worker was ready.
    description: ModelDescription | None = None
    #: Why it failed; None unless it did.
    error: str | None = None
    #: Who submitted it.
    owner: str = "local"
    #: Jobs of higher priority are started first.
    priority: int = 0
    #: Whether controllers may drive it; a job of ``autotune run`` belongs to that process.
    served: bool = False
    #: What its user asks of the driver that holds it; None if nothing.
    order: Order | None = None
    #: The driver that holds or last held it, as ``autotune.search.process_identity.this_driver`` tells it.
    driver: str | None = None
    #: Number of the lease. Each driver gets the next one, and writes under an earlier one are refused.
    epoch: int = 0
    #: When the lease runs out unless it is renewed, by the database's clock; None if no driver holds the job.
    leased_until: datetime | None = None
    #: Drivers in a row that died without recording a trial.
    crashes: int = 0
    #: Seconds spent searching, over all drivers.
    elapsed_s: float = 0.0
    #: Counts every change of the job, its trials and its front; readers cache by it.
    version: int = 0

    @cached_property
    def spec(self) -> JobSpec:
        """The job file, parsed when it is first needed: a job that this version cannot read stays in lists.

        Raises:
            JobSpecError: if another version recorded it, and this one cannot read it.
        """
        return JobSpec.recorded(self.document, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The name under which its user submits a job: the same one again is the same job."""

    #: Unique among the owner's submissions.
    key: str
    #: sha256 of what was asked for; another request under the same key is a mistake.
    request_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """What a driver has to know about its job from time to time."""

    #: What the user asks; None if nothing.
    order: Order | None
    #: Trials the search may take, and seconds; None is without a limit.
    trials: int
    time_limit_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldJob:
    """A served job that a driver holds, and the workers it wants."""

    job_id: str
    #: Who holds it, and under which epoch.
    driver: str
    epoch: int
    #: Workers at most.
    count: int
    #: CPUs of each worker; None leaves it to the cluster.
    cpus: float | None
    #: GPUs of each worker.
    gpus: float
    #: Kind of hardware of its workers; empty as long as it is not known.
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How far a job has come, without its trials."""

    #: Trials the search itself took.
    searched: int = 0
    #: Numbers of the trials on the front, ascending.
    front: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Figures over all jobs, for those who watch the service."""

    #: State -> jobs in it.
    jobs: Mapping[JobState, int]
    #: State -> trials in it.
    trials: Mapping["TrialState", int]
    #: Times that a driver was lost and another one took its job over.
    takeovers: int
    #: Seconds that the longest waiting job is in the queue; 0 if none waits.
    oldest_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """An access token, without its secret: only the hash of that is kept."""

    #: Short unique id.
    id: str
    #: Who holds it; the jobs submitted with it belong to that name.
    name: str
    scope: Scope
    created_at: datetime
    #: None if it is valid until it is revoked.
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, at: datetime) -> bool:
        """Return whether the token is accepted at that time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


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
