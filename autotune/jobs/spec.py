"""The job file: one pydantic model that the command line, the dashboard and Python share."""

import enum
import functools
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from autotune.errors import JobSpecError, NotFoundError, TooLargeError
from autotune.jobs.strict_yaml import load_json, load_yaml
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Constraint, Kind, decisive_workload, metric_of
from autotune.metrics.units import pattern, quantity
from autotune.validation import validated
from search_spaces.choice import CHOICES, LayerChoice
from search_spaces.errors import AutotuneError, unknown
from search_spaces.space import LayerRule
from workers import secret_values
from workers.measurement import Split, Workload
from workers.recovered import RecoverySettings
from workers.setup import (
    CalibrationSettings,
    KnownKernels,
    MeasurementSettings,
    ObserverKind,
    PoolSettings,
    WorkerSetup,
)

#: Objectives where nobody says. Accuracy is too coarse on a few hundred samples, so it is better limited. The default
#: of job files is older.
SUGGESTED_OBJECTIVES = ("latency_p50_ms", "divergence")
#: Stands for every backend that runs on the workers' device.
ALL_BACKENDS = "all"
#: The pick that is not a map but several: those that are worth recovering.
PROMISING: Literal["promising"] = "promising"
#: Names of the picks of the front; see ``autotune.jobs.front.pick``.
Pick = Literal["knee", "fastest", "smallest", "most-accurate"]
#: How maps are recovered where nobody says.
_RECOVERY = RecoverySettings()
#: Larger job files are refused before parsing; parsing this many bytes takes a second.
MAX_BYTES = 1 << 17


def _in(unit: str, number: Any) -> BeforeValidator:
    """Return the validator of a ``number`` in ``unit`` that may be written as text with a unit."""
    text = Annotated[str, Field(pattern=pattern(unit))]
    return BeforeValidator(functools.partial(quantity, unit=unit), json_schema_input_type=number | text)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[Positive, _in("s", Positive)]
#: Below the values that stand for overload, which break every limit.
_Latency = Annotated[float, Field(gt=0, lt=OVERLOADED_MS)]
_Accuracy = Annotated[float, Field(allow_inf_nan=False)]
_Drop = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _known_choice(name: str) -> str:
    if name not in CHOICES:
        raise ValueError(unknown("choice", name, CHOICES))
    return name


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown("metric", name, METRICS))
    return name


def _one_line(name: str) -> str:
    if any(character < " " for character in name):
        raise ValueError(f"must be one line without control characters, but got {name!r}")
    return name


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("must not be blank; delete the key to allow any hardware")
    return _one_line(name.strip())


def _searchable(name: str) -> str:
    metric = METRICS[name]
    if metric.reported_only:
        instead = metric_of(metric.kind, Split.EVALUATION).name if metric.is_quality else "another metric"
        raise ValueError(f"{name} is reported only, so it cannot be an objective or a constraint; use {instead}")
    return name


def _one_or_more(given: object) -> object:
    if isinstance(given, str):
        return given
    if not isinstance(given, list | tuple) or not given or not all(isinstance(name, str) for name in given):
        raise ValueError(f"must be a backend, a list of backends, or '{ALL_BACKENDS}', but got {given!r:.80}")
    if len(set(given)) != len(given):
        raise ValueError(f"must not contain a backend twice, but got {', '.join(given)}")
    if ALL_BACKENDS in given:
        raise ValueError(f"must be '{ALL_BACKENDS}' alone, or a list of backends without it")
    return given


ChoiceName = Annotated[str, AfterValidator(_known_choice)]
MetricName = Annotated[str, AfterValidator(_known_metric), AfterValidator(_searchable)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSection(_Section):
    """What is tuned: a registered task and its parameters."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _can_be_stored(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            text = json.dumps(parameters, allow_nan=False, ensure_ascii=False)
            text.encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError("must contain only text, finite numbers, true, false, null, lists and mappings") from None
        if r"\u0000" in text:
            raise ValueError("must not contain NUL characters, because databases reject them")
        wrong = list(secret_values.problems(parameters))
        if wrong:
            raise ValueError("; ".join(wrong))
        stored: dict[str, Any] = json.loads(text)
        return stored


class LatencyLimit(_Section):
    """A latency that must not exceed ``max`` milliseconds."""

    max: Annotated[_Latency, _in("ms", _Latency)]


class MemoryLimit(_Section):
    """Memory that must not exceed ``max`` MiB."""

    max: Annotated[Positive, _in("MiB", Positive)]


class DivergenceLimit(_Section):
    """A divergence from full precision that must not exceed ``max``, in the unit of the task's outputs."""

    max: Positive


class AccuracyFloor(_Section):
    """An accuracy that must not fall below ``min``."""

    min: Annotated[_Accuracy, _in("", _Accuracy)]


class DropLimit(_Section):
    """An upper limit on the relative loss of accuracy: 0.01 is one percent of full precision's."""

    max: Annotated[_Drop, _in("", _Drop)]


#: Kind of metric that can be limited -> type of its limit.
_LIMITS: dict[Kind, type[_Section]] = {
    Kind.ACCURACY: AccuracyFloor,
    Kind.ACCURACY_DROP: DropLimit,
    Kind.DIVERGENCE: DivergenceLimit,
    Kind.LATENCY: LatencyLimit,
    Kind.MEMORY: MemoryLimit,
}


class _Constraints(_Section):
    """The service-level objective."""

    @model_serializer(mode="wrap")
    def _those_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: limit for name, limit in dump(self).items() if limit is not None}

    def constraints(self) -> tuple[Constraint, ...]:
        """Return the limits that are set, by metric name in alphabetical order."""
        limits = []
        for name in sorted(type(self).model_fields):
            match getattr(self, name):
                case AccuracyFloor(min=least):
                    limits.append(Constraint(metric=name, limit=least, at_most=False))
                case DropLimit(max=most) | DivergenceLimit(max=most) | LatencyLimit(max=most) | MemoryLimit(max=most):
                    limits.append(Constraint(metric=name, limit=most, at_most=True))
        return tuple(limits)


if TYPE_CHECKING:
    ConstraintSection = _Constraints
else:
    #: Has a field per metric that can be limited: its limit or None.
    ConstraintSection = create_model(
        "ConstraintSection",
        __base__=_Constraints,
        __doc__=_Constraints.__doc__,
        **{name: (_LIMITS[metric.kind] | None, None) for name, metric in METRICS.items() if metric.can_be_limited},
    )


class LayerRuleSection(_Section):
    """A rule for the layers that match a pattern: exactly one of the other fields is set."""

    pattern: str
    allow: tuple[ChoiceName, ...] | None = None
    deny: tuple[ChoiceName, ...] | None = None
    pin: ChoiceName | None = None
    sensitivity: Positive | None = None

    @model_validator(mode="after")
    def _is_a_rule(self) -> Self:
        self.rule()
        return self

    def rule(self) -> LayerRule:
        """Return the rule for the search space."""
        try:
            return LayerRule(**self.model_dump())
        except AutotuneError as error:
            raise ValueError(str(error)) from None


class SamplerName(enum.StrEnum):
    """How the next map to measure is chosen."""

    SENSITIVITY = "sensitivity"
    NSGA2 = "nsga2"
    NSGA3 = "nsga3"
    TPE = "tpe"
    GP = "gp"
    RANDOM = "random"


class SearchSection(_Section):
    """The search space, its sampler and its budget."""

    choices: tuple[ChoiceName, ...] = (
        "fp32",
        "bf16",
        "fp16",
        "int8_static",
        "int8_dynamic",
        "int8_dynamic_per_token",
        "int8_weight_only",
        "int4_weight_only",
    )
    layers: tuple[LayerRuleSection, ...] = ()
    sampler: SamplerName = SamplerName.SENSITIVITY
    trials: Count = 100
    time_limit_s: Seconds | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("choices")
    @classmethod
    def _are_choices(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("must list at least one choice")
        return tuple(dict.fromkeys(names))


class CalibrationSection(_Section):
    """How static activation ranges are calibrated, and what else calibration data is used for."""

    observer: ObserverKind = ObserverKind.MINMAX
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    bias_correction: bool = False


class MeasurementSection(_Section):
    """How latency and accuracy are measured."""

    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    workloads: tuple[Workload, ...] = ()
    requests_per_second: Positive | None = None
    threads: Annotated[int, Field(ge=0)] = 0
    repeats: Annotated[int, Field(ge=20)] = 100
    final_repeats: Annotated[int, Field(ge=20)] = 500
    half_width: Annotated[float, Field(gt=0, lt=1)] | None = 0.01
    warmup_s: Annotated[float, Field(ge=0, le=60)] = 0.2


class WorkerSection(_Section):
    """Where candidates are measured."""

    pool: Literal["ray", "inline"] = "ray"
    count: Count = 1
    cpus: Positive | None = None
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    hardware: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_not_blank)] | None = None
    ray_address: str = "local"
    trial_timeout_s: Positive = 600.0
    cache_mib: Annotated[int, Field(ge=0)] | None = None


class RecoverySection(_Section):
    """Which maps get learned weights after the search, and how."""

    #: What to recover: picks of the front, or ``promising`` maps; see ``autotune.jobs.recovery``.
    picks: Annotated[tuple[Literal["promising", Pick], ...], Field(min_length=1, max_length=8)] = (PROMISING,)
    time_limit_s: Seconds | None = 300.0
    epochs: Annotated[int, Field(ge=1, le=1000)] = _RECOVERY.epochs
    validation: Annotated[float, Field(gt=0, le=0.5)] = _RECOVERY.validation

    def settings(self, seed: int) -> RecoverySettings:
        """Return the settings for workers."""
        limit_s = self.time_limit_s
        return RecoverySettings(epochs=self.epochs, validation=self.validation, time_limit_s=limit_s, seed=seed)


def _not_empty(section: Any) -> Any:
    if section is None:
        raise ValueError(
            "must be a mapping of keys to values; {} stands for the defaults, and without the key nothing is recovered"
        )
    return section


class JobSpec(_Section):
    """A tuning job."""

    schema_: Literal["autotune.job/v1"] = Field(default="autotune.job/v1", alias="schema")
    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]
    task: TaskSection
    #: A backend, several of them, or ``all``. Everything is compared with full precision on the first one.
    backend: Annotated[str | tuple[str, ...], BeforeValidator(_one_or_more)] = "auto"
    objectives: Annotated[tuple[MetricName, ...], Field(min_length=2, max_length=3)] = ("latency_p50_ms", "accuracy")
    constraints: ConstraintSection = ConstraintSection()
    search: SearchSection = SearchSection()
    calibration: CalibrationSection = CalibrationSection()
    measurement: MeasurementSection = MeasurementSection()
    workers: WorkerSection = WorkerSection()
    #: Recovery of maps after the search, in time of its own; without the key there is none.
    recovery: Annotated[RecoverySection | None, BeforeValidator(_not_empty)] = None

    @field_validator("objectives")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("must not contain a metric twice")
        return names

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        needed, name = max((METRICS[name].min_repeats, name) for name in self.metrics())
        if self.measurement.repeats < needed:
            raise ValueError(
                f"{name} needs measurement.repeats >= {needed}, but got {self.measurement.repeats}; "
                "raise repeats or use a lower percentile"
            )
        return self

    @model_validator(mode="after")
    def _has_a_load(self) -> Self:
        queued = [name for name in self.metrics() if METRICS[name].queued]
        if queued and self.measurement.requests_per_second is None:
            raise ValueError(f"{queued[0]} needs measurement.requests_per_second, the mean arrival rate of requests")
        return self

    @classmethod
    def of(cls, job: "JobFile") -> "JobSpec":
        """Return a job that is given as the path of its file, as the file's content, or as a ``JobSpec``.

        Raises:
            NotFoundError: if there is no such file.
            JobSpecError: if it is none of these, or breaks the schema; the message lists all errors.
        """
        match job:
            case JobSpec():
                return job
            case str() | PathLike():
                return cls.load(job)
            case Mapping():
                return cls.parse(dict(job))
        raise JobSpecError(f"a job must be the path of a job file, a mapping or a JobSpec, but got {job!r:.80}")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the job in the YAML file ``path``.

        Raises:
            NotFoundError: if there is no such file.
            JobSpecError: if the file cannot be read or breaks the schema; the message lists all errors.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise NotFoundError(f"there is no job file {str(path)!r}; 'autotune init' writes one") from None
        except OSError as error:
            raise JobSpecError(f"cannot read job file {str(path)!r}: {error.strerror}") from None
        return cls.read(raw, source=str(path))

    @classmethod
    def read(cls, raw: bytes, *, source: str = "job", as_json: bool = False) -> Self:
        """Return the job in the bytes of a YAML or JSON file.

        Raises:
            JobSpecError: if the file is too large or breaks the schema; the message lists all errors.
        """
        if len(raw) > MAX_BYTES:
            raise TooLargeError(f"a job file must be at most {MAX_BYTES} bytes, but {source!r} has more")
        try:
            data = load_json(raw) if as_json else load_yaml(raw)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise JobSpecError(f"{source!r} is not valid {'JSON' if as_json else 'YAML'}: {error}") from None
        return cls.parse(data, source=source)

    @classmethod
    def parse(cls, data: object, *, source: str = "job") -> Self:
        """Return the job in parsed YAML or JSON.

        Raises:
            JobSpecError: if ``data`` breaks the schema; the message lists all errors.
        """
        return validated(cls, data, f"{source} is not a valid job")

    @classmethod
    def recorded(cls, data: object, job_id: str) -> Self:
        """Return the job recorded as ``data``; keys that only a later version knows are ignored.

        Raises:
            JobSpecError: if another version recorded it, and this one cannot read it.
        """
        if isinstance(data, Mapping):  # earlier versions recorded a null for a job without recovery
            data = {key: value for key, value in data.items() if value is not None}
        complaint = f"job {job_id} was recorded by another version of quant-autotune; use that version"
        return validated(cls, data, complaint, extra="ignore")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of job files."""
        return cls.model_json_schema(by_alias=True)

    def dump(self) -> dict[str, Any]:
        """Return the job as JSON-ready data that ``parse`` accepts."""
        return self.model_dump(mode="json", by_alias=True, exclude={"recovery"} if self.recovery is None else None)

    def text(self) -> str:
        """Return the job file in YAML, without keys that have their default; the objectives are always there."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        first = {"name": self.name, "task": data.pop("task"), "objectives": list(self.objectives)}
        return yaml.safe_dump(first | data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)

    def with_search(self, source: str, **changes: Any) -> Self:
        """Return the job with other keys in its ``search`` section.

        Raises:
            JobSpecError: if the changed job is not valid.
        """
        document = self.dump()
        return self.parse(document | {"search": document["search"] | changes}, source=source)

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that decide: the objectives, then the constrained metrics."""
        return (*self.objectives, *(constraint.metric for constraint in self.constraints.constraints()))

    def workloads(self) -> tuple[Workload, ...]:
        """Return the workloads to time in addition to the forward pass: the requested ones and those of ``metrics``."""
        others = [workload for workload in Workload if workload is not Workload.FORWARD]
        named = {METRICS[name].workload for name in self.metrics()} | set(self.measurement.workloads)
        if self.measurement.requests_per_second is not None:
            named.add(Workload.REQUEST)
        return tuple(workload for workload in others if workload in named)

    def searched_workloads(self) -> tuple[Workload, ...]:
        """Return the workloads to time of maps that the search tries: the decisive one, then the others.

        The forward pass is left out if nobody asks for it, because it often takes as long as another workload.
        """
        wanted = {METRICS[name].workload for name in self.metrics() if METRICS[name].is_latency}
        wanted |= {*self.measurement.workloads, *self.workloads()}
        if len(self.measurement.batch_sizes) > 1:
            wanted.add(Workload.FORWARD)
        decisive = decisive_workload(self.objectives)
        return (decisive, *(workload for workload in Workload if workload in wanted - {decisive}))

    def backends(self) -> tuple[str, ...]:
        """Return the backends as the job names them, the one that everything is compared with first."""
        return (self.backend,) if isinstance(self.backend, str) else self.backend

    def rules(self) -> tuple[LayerRule, ...]:
        """Return the user's layer rules."""
        return tuple(section.rule() for section in self.search.layers)

    def worker_setup(self, task_file: str | None = None) -> WorkerSetup:
        """Return the setup of the job's workers."""
        first, *others = self.backends()
        return WorkerSetup(
            task=self.task.name,
            task_parameters=self.task.parameters,
            backend="auto" if first == ALL_BACKENDS else first,
            others={name: KnownKernels() for name in others},
            all_backends=first == ALL_BACKENDS,
            calibration=CalibrationSettings(
                **self.calibration.model_dump(),
                smoothing=any(choice.is_smooth for choice in self._mentioned()),
                moments=any(choice.is_gptq for choice in self._mentioned()),
            ),
            measurement=MeasurementSettings(
                **self.measurement.model_dump() | {"workloads": self.workloads(), "half_width": self.half_width()}
            ),
            task_file=task_file,
            cache_bytes=None if self.workers.cache_mib is None else self.workers.cache_mib << 20,
        )

    def half_width(self) -> float | None:
        """Return the half-width at which timing stops; None if a metric is a percentile of the tail.

        Such a percentile needs all passes, however well they determine the median.
        """
        tail = any(METRICS[name].min_repeats for name in self.metrics())
        return None if tail else self.measurement.half_width

    def _mentioned(self) -> list[LayerChoice]:
        """Return the choices that at least one layer may take."""
        of_rules = [name for rule in self.rules() for name in rule.names()]
        return [CHOICES[name] for name in (*self.search.choices, *of_rules)]

    def pool_settings(self) -> PoolSettings:
        """Return the settings of the job's worker pool."""
        return PoolSettings(**self.workers.model_dump(exclude={"pool", "cache_mib"}))


#: A job as users give it: the path of a job file, the file's content, or the parsed job.
JobFile = JobSpec | Mapping[str, Any] | str | PathLike[str]
