"""Jobs of every shape for tests of the dashboard, recorded through the ``Store`` seam.

Figures come from a small deterministic cost model of a sentence encoder; nothing here was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np

from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Silent
from autotune.jobs.records import (
    EventRecord,
    FrontRecord,
    JobRecord,
    JobState,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS, decisive_workload
from autotune.search.probing import obtain_probes
from autotune.store.base import Store
from search_spaces.fusion import fusion_group
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, map_key
from workers.measurement import Environment, FailureCause, LatencySamples, Workload
from workers.setup import (
    ActivationHistogram,
    BackendDescription,
    Calibration,
    Estimator,
    LayerProbe,
    ModelDescription,
    Probes,
)
from workers.timing.estimates import Figure

CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only")
#: Choice -> time, loss and bytes relative to fp32, on layers that dominate.
_SPEED = dict(zip(CHOICES, (1.0, 0.55, 0.27, 0.33, 0.84, 0.9), strict=True))
_LOSS = dict(zip(CHOICES, (0.0, 0.0002, 0.02, 0.008, 0.004, 0.03), strict=True))
_BYTES = dict(zip(CHOICES, (1.0, 0.5, 0.26, 0.26, 0.26, 0.14), strict=True))
_KERNELS = dict(zip(CHOICES[1:], ("bf16", "fbgemm", "fbgemm", "bf16", "int4pack"), strict=True))
_HARDWARE = "Intel(R) Xeon(R) Processor (AVX2, AVX-512, VNNI, BF16), 2 cores"
#: Another backend than that of the reference, and its latencies relative to those there.
_OTHER, _OTHER_SPEED = "onnxruntime", 0.8
#: Hostile names: none may be rendered as anything but text.
HOSTILE = "<img src=x onerror=alert(1)> ![x](https://evil.invalid/x.png) $x$ :red[hi] **b** `c`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A job of one shape."""

    state: JobState = JobState.FINISHED
    #: Trials recorded, and the budget.
    trials: int = 40
    budget: int = 40
    constraints: dict[str, Any] | None = None
    error: str | None = None
    described: bool = True
    name: str = "MiniLM for the search service"
    #: Whether its layers were probed, and histograms of their inputs kept.
    probed: bool = True
    #: Of the job file; what is not said is as it comes.
    measurement: dict[str, Any] | None = None
    hardware: str = _HARDWARE
    backend: str | list[str] = "auto"
    objectives: tuple[str, ...] = ("latency_p50_ms", "accuracy")


SCENARIOS: dict[str, Scenario] = {
    "finished": Scenario(constraints={"latency_p95_ms": {"max": 22.0}, "accuracy_drop": {"max": 0.02}}),
    "running": Scenario(state=JobState.RUNNING, trials=17, budget=60, name="MiniLM, nightly"),
    "one_trial": Scenario(state=JobState.RUNNING, trials=1, budget=60, name="Just begun"),
    "infeasible": Scenario(constraints={"latency_p95_ms": {"max": 4.0}}, trials=20, budget=20, name="Too much asked"),
    "failed": Scenario(
        state=JobState.FAILED,
        trials=0,
        described=False,
        error="TaskError: unknown task 'minilm-le'; did you mean 'minilm-lee'? Known: digits-cnn, minilm-lee",
        name="Mistyped",
    ),
    "failed_late": Scenario(state=JobState.FAILED, trials=9, error="PoolError: no worker is left", name="Workers died"),
    "paused": Scenario(state=JobState.PAUSED, trials=12, budget=60, name="Stopped by hand"),
    "queued": Scenario(state=JobState.QUEUED, trials=0, described=False, name="Waiting"),
    "cancelled": Scenario(state=JobState.CANCELLED, trials=14, budget=60, name="Given up"),
    "hostile": Scenario(name=HOSTILE, trials=8, budget=8),
    # On hardware of its own, or the other jobs' probes would serve it.
    "unprobed": Scenario(trials=20, budget=20, probed=False, name="Without probes", hardware="Arm Neoverse, 4 cores"),
    "elsewhere": Scenario(
        trials=30,
        budget=30,
        name="MiniLM on the edge box",
        measurement={"batch_sizes": [8], "repeats": 300},
        hardware="AMD EPYC 7B13 (AVX2), 8 cores",
    ),
    "runtimes": Scenario(trials=30, budget=30, name="MiniLM on two runtimes", backend=["cpu", _OTHER]),
    # With every workload of a language model and shifted data, whose names are long.
    "language": Scenario(
        name="Some language model",
        objectives=("prefill_latency_p50_ms", "divergence"),
        constraints={"prefill_latency_p50_ms": {"max": 19.0}, "divergence": {"max": 0.0012}},
    ),
}


def seed(store: Store, *scenarios: str) -> dict[str, str]:
    """Record one job for each scenario and return scenario -> job id."""
    at = datetime.now(UTC) - timedelta(hours=len(scenarios))
    ids = {}
    for position, name in enumerate(scenarios):
        ids[name] = record_job(store, f"{position:04x}cafe", SCENARIOS[name], at + timedelta(minutes=50 * position))
    return ids


def record_job(store: Store, job_id: str, scenario: Scenario, at: datetime) -> str:
    """Record a job with its trials and return its id."""
    spec = _spec(scenario)
    job = JobRecord(
        id=job_id,
        name=scenario.name,
        task="minilm-lee",
        document=spec.dump(),
        state=JobState.QUEUED,
        created_at=at,
        updated_at=at,
    )
    store.create_job(job)
    drive(store, job_id, scenario)
    said = EventRecord(at=at, kind="state", message=f"The job is {scenario.state}.")
    store.change_job(job_id, with_fields(0, said, state=scenario.state, error=scenario.error))
    return job_id


def drive(store: Store, job_id: str, scenario: Scenario) -> None:
    """Record what a driver would: the model, its probes, and trials."""
    spec = store.job(job_id).spec
    if scenario.described:
        description = describe(scenario.hardware, histograms=scenario.probed)
        if len(spec.backends()) > 1:
            description = replace(description, others={_OTHER: _elsewhere(description)})
        driven = with_fields(0, state=JobState.RUNNING, description=description, driver="host:1:2:")
        described = store.change_job(job_id, driven)
        if scenario.probed:
            obtain_probes(store, described, SimpleNamespace(probe=lambda *_: probes()), Silent())
    store.record([result for result, _ in zip(results(spec, job_id), range(scenario.trials), strict=False)], epoch=0)


def record_next(store: Store, job_id: str) -> TrialRecord:
    """Record one more trial of a job and return it."""
    done = len(store.trials(job_id))
    spec = store.job(job_id).spec
    *_, result = (result for result, _ in zip(results(spec, job_id), range(done + 1), strict=False))
    store.record([result], epoch=0)
    return result.trial


def results(spec: JobSpec, job_id: str) -> Iterator[TrialResult]:
    """Return an endless, deterministic stream of trials: the baselines, then random maps; some fail."""
    layers, rng = _layers(), np.random.default_rng(7)
    done: list[TrialRecord] = []
    front: FrontRecord | None = None
    names = [*CHOICES]
    while True:
        number = len(done)
        uniform = names.pop(0) if names else None
        choices = _assignment(layers, rng, uniform)
        trial = _trial(spec, job_id, number, uniform, choices, layers, rng)
        done.append(trial)
        newest = _front(spec, done)
        yield TrialResult(
            trial=trial,
            latency=_latency(trial, rng),
            front=newest if newest and (front is None or newest.members != front.members) else None,
            elapsed_s=4.2,
        )
        front = newest or front


def probes() -> Probes:
    """Return what the cost model says of every layer and choice."""
    layers = _layers()
    flops = sum(layer.flops for layer in layers)
    return Probes(
        layers=tuple(
            LayerProbe(
                layer=layer.name,
                choice=choice,
                divergence=_sensitivity(layer) * _LOSS[choice] / len(layers) / 8,
                latency_ms=24.0 * layer.flops / flops * _SPEED[choice],
            )
            for layer in layers
            for choice in CHOICES
            if choice not in _refusals(layer)
        ),
        pass_ms=27.0,
        estimator=Estimator.GRADIENT,
        samples=64,
        seconds=3.2,
    )


def describe(hardware: str = _HARDWARE, *, histograms: bool = True) -> ModelDescription:
    """Return what a worker would say about the model."""
    layers = tuple(_layers())
    rng = np.random.default_rng(3)
    ranges = {
        layer.name: ActivationRange(low=-float(rng.uniform(1, 9)), high=float(rng.uniform(1, 9))) for layer in layers
    }
    return ModelDescription(
        fingerprint="5e" * 32,
        layers=layers,
        refusals={layer.name: _refusals(layer) for layer in layers},
        layer_bytes={
            layer.name: {c: int(layer.weight_bytes * _BYTES[c]) for c in CHOICES if c not in _refusals(layer)}
            for layer in layers
        },
        other_bytes=60_000,
        calibration=Calibration(
            ranges=ranges,
            histograms={
                layer.name: _histogram(ranges[layer.name]) for layer in layers if layer.kind is LayerKind.LINEAR
            }
            if histograms
            else {},
            samples=250,
            seconds=2.5,
        ),
        environment=_environment(hardware),
        skipped={"embeddings.rotary": "no quantized kernel replaces Rotary"},
        kernels={
            layer.name: {c: _KERNELS[c] for c in CHOICES[1:] if c not in _refusals(layer)}
            for layer in layers
            if layer.kind is LayerKind.LINEAR
        },
    )


def _elsewhere(description: ModelDescription) -> BackendDescription:
    """Return the description of the other backend, which has neither bf16 nor names of kernels."""
    refused = {"bf16": "its CPU provider widens bf16 weights"}
    return BackendDescription(
        refusals={layer: dict(reasons) | refused for layer, reasons in description.refusals.items()},
        layer_bytes=description.layer_bytes,
        other_bytes=description.other_bytes,
        environment=replace(description.environment, backend=_OTHER),
    )


def _histogram(calibrated: ActivationRange) -> ActivationHistogram:
    """Return a bell around zero whose tails the range clips."""
    edges = np.linspace(1.25 * calibrated.low, 1.25 * calibrated.high, 65)
    middles = (edges[:-1] + edges[1:]) / 2
    counts = np.ceil(1e6 * np.exp(-0.5 * (middles / (0.25 * np.ptp(edges) / 2)) ** 2)).astype(int)
    outside = counts[(middles < calibrated.low) | (middles > calibrated.high)].sum()
    return ActivationHistogram(
        low=float(edges[0]), high=float(edges[-1]), counts=tuple(counts.tolist()), clipped=float(outside / counts.sum())
    )


def _spec(scenario: Scenario) -> JobSpec:
    return JobSpec.parse(
        {
            "name": scenario.name if len(scenario.name) <= 100 else scenario.name[:100],
            "backend": scenario.backend,
            "task": {"name": "minilm-lee"},
            "objectives": list(scenario.objectives),
            "constraints": scenario.constraints or {},
            "search": {"trials": scenario.budget},
            "measurement": scenario.measurement or {},
        }
    )


def _environment(hardware: str) -> Environment:
    return Environment(hardware=hardware, backend="cpu", threads=2, load=0.4, versions={"torch": "2.13.0"})


def _layers() -> list[Layer]:
    shapes: list[tuple[str, tuple[int, int]]] = [
        ("embeddings.word_embeddings", (30522, 384)),
        ("embeddings.position_embeddings", (512, 384)),
        ("embeddings.token_type_embeddings", (2, 384)),
    ]
    for block in range(6):
        prefix = f"encoder.layer.{block}."
        shapes += [(f"{prefix}attention.self.{part}", (384, 384)) for part in ("query", "key", "value")]
        shapes += [
            (f"{prefix}attention.output.dense", (384, 384)),
            (f"{prefix}intermediate.dense", (1536, 384)),
            (f"{prefix}output.dense", (384, 1536)),
        ]
    shapes.append(("pooler.dense", (384, 384)))
    return [_layer(order, name, shape) for order, (name, shape) in enumerate(shapes)]


def _layer(order: int, name: str, shape: tuple[int, int]) -> Layer:
    embedding = name.startswith("embeddings")
    return Layer(
        name=name,
        kind=LayerKind.EMBEDDING if embedding else LayerKind.LINEAR,
        weight_shape=shape,
        has_bias=not embedding,
        weight_bytes=4 * shape[0] * shape[1],
        input_shape=(1, 128) if embedding else (1, 128, shape[1]),
        flops=0 if embedding else 2 * 128 * shape[0] * shape[1],
        calls=1,
        order=order,
        group=fusion_group(name),
        frozen_reason="never ran on the example batch" if name == "pooler.dense" else None,
    )


def _refusals(layer: Layer) -> dict[str, str]:
    if layer.frozen_reason:
        return dict.fromkeys(CHOICES[1:], layer.frozen_reason)
    if layer.kind is LayerKind.EMBEDDING:
        return dict.fromkeys(("int8_static", "int8_dynamic"), "an embedding has no input activations")
    return {}


def _assignment(layers: Sequence[Layer], rng: np.random.Generator, uniform: str | None) -> dict[str, str]:
    """Return a uniform map, or static int8 with a random share of the sensitive layers kept better."""
    taken: dict[str, str] = {}
    kept = rng.uniform(0, 1)
    better = rng.choice(["bf16", "int8_dynamic", "int8_dynamic", "fp32"])
    for layer in layers:
        legal = [c for c in CHOICES if c not in _refusals(layer)]
        sensitive = _sensitivity(layer) > 1 and rng.uniform() < 0.5 + 0.5 * kept
        wanted = uniform or (better if sensitive or rng.uniform() < kept / 2 else "int8_static")
        if layer.kind is LayerKind.EMBEDDING and uniform is None:
            wanted = "int8_weight_only"
        taken.setdefault(layer.group, wanted if wanted in legal else "fp32")
    return {layer.name: taken[layer.group] for layer in layers}


def _sensitivity(layer: Layer) -> float:
    return 6.0 if layer.name.endswith(".output.dense") and layer.order % 3 else 0.4


def _trial(
    spec: JobSpec,
    job_id: str,
    number: int,
    uniform: str | None,
    choices: dict[str, str],
    layers: Sequence[Layer],
    rng: np.random.Generator,
) -> TrialRecord:
    figures = _figures(choices, layers, rng)
    if decisive_workload(spec.objectives) is not Workload.FORWARD:
        figures |= _of_language_models(figures)
    limits = spec.constraints.constraints()
    trial = TrialRecord(
        job_id=job_id,
        number=number,
        kind=TrialKind.BASELINE if uniform else TrialKind.SEARCH,
        label=("fp32" if uniform == "fp32" else f"uniform {uniform}") if uniform else None,
        state=TrialState.COMPLETE,
        choices=choices,
        key=map_key(choices),
        figures=figures,
        violations={c.metric: c.violation(figures[c.metric].value) for c in limits},
        environment={"hardware": _HARDWARE, "backend": "cpu", "threads": 2, "load": 0.4, "versions": {}},
        worker="inline",
        seconds=4.2,
        forward_seconds=3.9,
        finished_at=datetime.now(UTC),
    )
    if len(spec.backends()) > 1 and number % 3 == 2:
        faster = {name: f.scaled(_OTHER_SPEED) if name.startswith("latency") else f for name, f in figures.items()}
        environment = dict(trial.environment) | {"backend": _OTHER}
        trial = replace(trial, backend=_OTHER, key=map_key(choices, _OTHER), figures=faster, environment=environment)
    if number % 11 == 10:
        return replace(
            trial,
            state=TrialState.FAILED,
            figures={},
            violations={},
            attempts=3,
            failure=FailureCause.CRASH,
            message="worker died with signal 9",
        )
    if number % 13 == 12:
        kept = {name: figure for name, figure in figures.items() if not name.startswith("latency")}
        return replace(trial, state=TrialState.REJECTED, figures=kept, message="accuracy_drop is over its limit")
    return trial


def _figures(choices: dict[str, str], layers: Sequence[Layer], rng: np.random.Generator) -> dict[str, Figure]:
    flops = sum(layer.flops for layer in layers)
    p50 = 3.0 + sum(24.0 * layer.flops / flops * _SPEED[choices[layer.name]] for layer in layers)
    p50 *= float(rng.normal(1, 0.01))
    loss = sum(_sensitivity(layer) * _LOSS[choices[layer.name]] for layer in layers) / len(layers)
    reference, accuracy = 0.7213, 0.7213 * (1 - 1.1 * loss)
    memory = (60_000 + sum(layer.weight_bytes * _BYTES[choices[layer.name]] for layer in layers)) / (1 << 20)
    figures = {
        "accuracy": Figure(value=accuracy),
        "accuracy_drop": Figure(value=(reference - accuracy) / reference),
        "divergence": Figure(value=loss / 8),
        "weight_memory_mib": Figure(value=memory),
        "peak_memory_mib": Figure(value=memory + 3.4),
        "latency_ratio": Figure(value=p50 / 27.0, low=p50 / 27.0 * 0.99, high=p50 / 27.0 * 1.01),
    }
    if set(choices.values()) == {"fp32"}:
        figures["latency_ratio"] = Figure(value=1.0)  # relative to itself
    for metric, factor in (("latency_p50_ms", 1.0), ("latency_p90_ms", 1.06), ("latency_p95_ms", 1.1)):
        figures[metric] = Figure(value=p50 * factor, low=p50 * factor * 0.985, high=p50 * factor * 1.02)
    return figures


def _of_language_models(figures: dict[str, Figure]) -> dict[str, Figure]:
    """Return the figures of other workloads and of shifted data, as if they followed those of the forward pass."""
    shifted = {f"shifted_{name}": figures[name] for name in ("accuracy", "accuracy_drop", "divergence")}
    passes = [name for name in figures if name.startswith("latency")]
    workloads = (Workload.PREFILL, Workload.DECODE, Workload.REQUEST)
    return shifted | {f"{workload}_{name}": figures[name] for workload in workloads for name in passes}


def _latency(trial: TrialRecord, rng: np.random.Generator) -> tuple[LatencySamples, ...]:
    if "latency_p50_ms" not in trial.figures:
        return ()
    draw: Callable[[float], Any] = lambda centre: centre * (1 + 0.05 * rng.gamma(1.5, 0.6, size=100))  # noqa: E731
    return (
        LatencySamples(
            batch_size=1, candidate_ms=draw(trial.figures["latency_p50_ms"].value * 0.96), reference_ms=draw(26.0)
        ),
    )


def _front(spec: JobSpec, trials: Sequence[TrialRecord]) -> FrontRecord | None:
    feasible = [trial for trial in trials if trial.feasible]
    values = np.array([[_cost(t, m) for m in spec.objectives] for t in feasible]).reshape(
        len(feasible), len(spec.objectives)
    )
    members = [
        trial.number
        for trial, row in zip(feasible, values, strict=True)
        if not any((other <= row).all() and (other < row).any() for other in values)
    ]
    if not members:
        return None
    return FrontRecord(trials=len(trials), members=tuple(members), hypervolume=_covered(feasible, members))


def _covered(trials: Sequence[TrialRecord], members: Sequence[int]) -> float:
    """Return the share of the box 30 ms x (0.6 to 0.73) accuracy that the front covers."""
    corners = sorted(
        (trial.figures["latency_p50_ms"].value, trial.figures["accuracy"].value)
        for trial in trials
        if trial.number in members
    )
    area, floor = 0.0, 0.6
    for latency, accuracy in corners:
        area += max(0.0, 30.0 - latency) * max(0.0, accuracy - floor)
        floor = max(floor, accuracy)
    return area / (30.0 * 0.13)


def _cost(trial: TrialRecord, metric: str) -> float:
    return trial.figures[metric].value * (-1 if METRICS[metric].maximise else 1)
