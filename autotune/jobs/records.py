"""The store's content as plain data: one record type per table."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from autotune.jobs.spec import JobSpec
from workers.measurement import FailureCause, LatencySamples
from workers.recovered import RecoveryReport
from workers.setup import ModelDescription
from workers.timing.estimates import Figure


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    #: Waiting for a driver.
    QUEUED = "queued"
    #: A driver is searching, or was until it died.
    RUNNING = "running"
    #: Stopped by its user; can be resumed.
    PAUSED = "paused"
    #: Budget used up, or the whole space measured.
    FINISHED = "finished"
    #: Abandoned by its user; its results are kept.
    CANCELLED = "cancelled"
    #: Stopped by an error; can be resumed.
    FAILED = "failed"

    @property
    def is_live(self) -> bool:
        """Whether the job may still change without its user."""
        return self in (JobState.QUEUED, JobState.RUNNING)


class Order(enum.StrEnum):
    """A user's order to the driver that holds a job."""

    PAUSE = "pause"
    CANCEL = "cancel"

    @property
    def state(self) -> JobState:
        """State of a job after the order is carried out."""
        return JobState.PAUSED if self is Order.PAUSE else JobState.CANCELLED

    @property
    def done(self) -> str:
        """Message of the event when the order is carried out."""
        return f"{self.state.capitalize()} by its user"


class Scope(enum.StrEnum):
    """What the holder of a token may do; each scope includes the ones before it."""

    #: Read everything.
    VIEWER = "viewer"
    #: Submit jobs, and change one's own.
    SUBMITTER = "submitter"
    #: Change everybody's jobs, and create tokens.
    ADMIN = "admin"

    def includes(self, needed: "Scope") -> bool:
        """Return whether a token of this scope may do what requires ``needed``."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class TrialKind(enum.StrEnum):
    """Why a candidate was measured."""

    #: Full precision, a uniform map or a runtime's recipe: always measured in full.
    BASELINE = "baseline"
    #: Proposed by the sampler.
    SEARCH = "search"
    #: A map picked after the search, measured again at full fidelity.
    FINAL = "final"
    #: A measured map with learned weights; its speed and memory are those of its parent.
    RECOVERED = "recovered"

    @property
    def is_searched(self) -> bool:
        """Whether the budget of the search counts it."""
        return self in (TrialKind.BASELINE, TrialKind.SEARCH)


class TrialState(enum.StrEnum):
    """What became of a candidate."""

    #: All figures were measured.
    COMPLETE = "complete"
    #: Ruled out before it was measured in full: some figures are missing.
    REJECTED = "rejected"
    #: Could not be measured.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStage:
    """What the driver of a job is doing, and how far it is."""

    #: For people, such as ``Calibrating`` or ``Searching``.
    name: str
    #: Steps done, and all steps: batches, layers or trials; None if they cannot be counted.
    done: int = 0
    total: int | None = None
    #: What it does within the current step, such as ``latency 4/10``; empty if nothing is known.
    detail: str = ""
    #: Estimate of the seconds left: of the search while it searches, else of the stage; None without one.
    remaining_s: float | None = None


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
    document: Annotated[Mapping[str, Any], Field(alias="spec")] = field(repr=False)
    state: JobState
    #: Time of submission, in UTC.
    created_at: datetime
    #: Time of the last change, in UTC.
    updated_at: datetime
    #: The workers' description of the model; None until a worker was ready.
    description: ModelDescription | None = field(default=None, repr=False)
    #: Why it failed; None unless it did.
    error: str | None = None
    #: Who submitted it.
    owner: str = "local"
    #: Jobs of higher priority are started first.
    priority: int = 0
    #: Whether controllers may drive it; a job of ``autotune run`` belongs to that process.
    served: bool = False
    #: The user's order to the driver that holds it; None without one.
    order: Order | None = None
    #: The driver that holds or last held it, as returned by ``autotune.search.process_identity.this_driver``.
    driver: str | None = None
    #: Number of the lease. Each driver gets the next one, and writes under an earlier one are refused.
    epoch: int = 0
    #: When the lease runs out unless it is renewed, by the database's clock; None if no driver holds the job.
    leased_until: datetime | None = None
    #: What its driver is doing; None if no driver has told. Changes of it do not count as versions.
    stage: JobStage | None = None
    #: Drivers in a row that died without recording a trial.
    crashes: int = 0
    #: Seconds spent searching, over all drivers.
    elapsed_s: float = 0.0
    #: Number of changes of the job, its trials and its front; readers use it as a cache key.
    version: int = 0

    @cached_property
    def spec(self) -> JobSpec:
        """The job file, parsed at first use, so that lists can show jobs that this version cannot read.

        Raises:
            JobSpecError: if another version recorded it, and this one cannot read it.
        """
        return JobSpec.recorded(self.document, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The user's key for a submission: submitting again with the same key creates no second job."""

    #: Unique among the owner's submissions.
    key: str
    #: sha256 of the request; a different request under the same key is an error.
    request_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """What a driver polls about its job."""

    #: The user's order; None without one.
    order: Order | None
    #: Most trials and seconds of the search; None means no time limit.
    trials: int
    time_limit_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldJob:
    """A served job that a driver holds, and the workers it wants."""

    job_id: str
    #: The driver that holds it, and its epoch.
    driver: str
    epoch: int
    #: Most workers.
    count: int
    #: CPUs of each worker; None leaves it to the cluster.
    cpus: float | None
    #: GPUs of each worker.
    gpus: float
    #: Kind of hardware of its workers; empty until it is known.
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A summary of a job's progress, without its trials."""

    #: Trials of the search itself.
    searched: int = 0
    #: Numbers of the trials on the front, ascending.
    front: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of all jobs, for monitoring the service."""

    #: State -> number of jobs.
    jobs: Mapping[JobState, int]
    #: State -> number of trials.
    trials: Mapping["TrialState", int]
    #: How often another driver took over the job of a lost driver.
    takeovers: int
    #: Seconds that the oldest queued job has waited; 0 if the queue is empty.
    oldest_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """An access token without its secret, of which only the hash is stored."""

    #: Short unique id.
    id: str
    #: Its holder; jobs submitted with the token belong to this name.
    name: str
    scope: Scope
    created_at: datetime
    #: None if it is valid until it is revoked.
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, at: datetime) -> bool:
        """Return whether the token is valid at that time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A candidate and its results. Written once, when it is finished."""

    job_id: str
    #: Number within the job, from 0 in the order proposed.
    number: int
    kind: TrialKind
    #: Name for people, such as ``uniform int8_static`` or ``recipe int8_static``; None for sampled maps.
    label: str | None
    state: TrialState
    #: Layer name -> choice name, in execution order.
    choices: Mapping[str, str]
    #: Backend that runs the map; empty for the one whose full precision everything in the job is compared with.
    backend: str = ""
    #: Of a recovered map: number of the trial whose map was recovered, and what recovery did; None for other maps.
    parent: int | None = None
    recovery: RecoveryReport | None = None
    #: ``search_spaces.quantization_map.map_key`` of the map; unique within the job.
    key: str
    #: Metric name -> figure, for every metric that was measured.
    figures: Mapping[str, Figure] = field(default_factory=dict)
    #: Constraint metric -> violation, at most 0 if it holds, for every constraint that is known.
    violations: Mapping[str, float] = field(default_factory=dict)
    #: Times it was started; 0 if it was ruled out without running.
    attempts: int = 1
    #: Why it failed; None unless it did.
    failure: FailureCause | None = None
    #: One line about the failure or rejection, or about what a complete trial lacks.
    message: str | None = None
    #: What the sampler needs to continue after a restart; JSON-ready.
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    #: Where it ran: JSON-ready form of ``workers.measurement.Environment``; empty if it did not.
    environment: Mapping[str, Any] = field(default_factory=dict)
    #: Process or actor that measured it.
    worker: str = ""
    #: Wall-clock seconds of the measurement, and the part spent in forward passes.
    seconds: float = 0.0
    forward_seconds: float = 0.0
    #: When it was finished, in UTC.
    finished_at: datetime

    @property
    def ran_on(self) -> str:
        """Name of the backend that ran the map; empty if none did."""
        return self.backend or str(self.environment.get("backend", ""))

    @property
    def addition(self) -> str:
        """Words to put behind the trial's name, such as `` on openvino, recovered``.

        Empty for a plain map on the backend of the reference.
        """
        where = f" on {self.backend}" if self.backend else ""
        return f"{where}, recovered" if self.kind is TrialKind.RECOVERED else where

    @property
    def feasible(self) -> bool:
        """Whether everything was measured and every constraint holds."""
        return self.state is TrialState.COMPLETE and all(v <= 0 for v in self.violations.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRecord:
    """The Pareto front after a trial. A job keeps every revision."""

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


class ArtifactKind(enum.StrEnum):
    """What an artifact holds."""

    #: What recovery learned; see ``workers.recovery.learned``.
    LEARNED_WEIGHTS = "learned weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that trials need; several may need the same one."""

    #: sha256 of the bytes in hexadecimal, by which it is known.
    sha256: str
    kind: ArtifactKind
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Everything that one commit writes: the trial, its raw latencies and files, the new front and events."""

    trial: TrialRecord
    latency: tuple[LatencySamples, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    #: The front after this trial; None if it did not change.
    front: FrontRecord | None = None
    events: tuple[EventRecord, ...] = ()
    #: Seconds to add to the job's elapsed time.
    elapsed_s: float = 0.0
