"""Writes a made-up job with thousands of trials over hundreds of layers to a database."""

import argparse
from datetime import UTC, datetime

import numpy as np

from autotune.jobs.front import LiveFront
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Silent
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.search.probing import obtain_probes
from autotune.store.base import Store
from autotune.store.open import open_store
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, map_key
from workers.measurement import Environment, LatencySamples
from workers.setup import ActivationHistogram, Calibration, Estimator, LayerProbe, ModelDescription, Probes
from workers.timing.estimates import Figure

CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only")
_TIME = np.array([1.0, 0.55, 0.27, 0.33, 0.84, 0.9])
_LOSS = np.array([0.0, 0.0002, 0.02, 0.008, 0.004, 0.03])
_BYTES = np.array([1.0, 0.5, 0.26, 0.26, 0.26, 0.14])
_BATCH = 100


class _ProbedPool:
    """The part of a pool that probing needs."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers

    def probe(self, budget_s: float, backend: str = "") -> Probes:
        probes = [
            LayerProbe(layer=layer.name, choice=choice, divergence=float(loss) / 800, latency_ms=0.1 * float(time))
            for layer in self._layers
            for choice, time, loss in zip(CHOICES, _TIME, _LOSS, strict=True)
        ]
        return Probes(layers=tuple(probes), pass_ms=40.0, estimator=Estimator.GRADIENT, samples=64, seconds=9.0)


def write_job(store: Store, *, trials: int, layers: int, state: JobState = JobState.FINISHED) -> str:
    """Record the job and return its id."""
    spec = JobSpec.parse(
        {
            "name": f"{trials} trials of {layers} layers",
            "task": {"name": "large"},
            "constraints": {"accuracy_drop": {"max": 0.02}},
            "search": {"trials": max(trials, 1)},
        }
    )
    at = datetime.now(UTC)
    job = JobRecord(
        id=f"{trials:x}", name=spec.name, task="large", document=spec.dump(), state=state, created_at=at, updated_at=at
    )
    store.create_job(job)
    described = store.change_job(job.id, with_fields(0, description=_description(layers)))
    obtain_probes(store, described, _ProbedPool(described.description.layers), Silent())  # type: ignore[arg-type,union-attr]
    batch: list[TrialResult] = []
    for result in _results(spec, job.id, described.description, trials):  # type: ignore[arg-type]
        batch.append(result)
        if len(batch) == _BATCH:
            store.record(batch, epoch=0)
            batch = []
    store.record(batch, epoch=0)
    return job.id


def _description(count: int) -> ModelDescription:
    layers = tuple(
        Layer(
            name=f"model.layers.{order // 6}.{('q', 'k', 'v', 'o', 'up', 'down')[order % 6]}",
            kind=LayerKind.LINEAR,
            weight_shape=(1024, 1024),
            has_bias=True,
            weight_bytes=4 << 20,
            input_shape=(1, 64, 1024),
            flops=1 << 27,
            calls=1,
            order=order,
            group=f"group {order}",
        )
        for order in range(count)
    )
    histogram = ActivationHistogram(low=-4.0, high=4.0, counts=tuple(range(1000, 1064)), clipped=0.001)
    sizes = {choice: int((4 << 20) * share) for choice, share in zip(CHOICES, _BYTES, strict=True)}
    return ModelDescription(
        fingerprint="5e" * 32,
        layers=layers,
        refusals={layer.name: {} for layer in layers},
        layer_bytes={layer.name: sizes for layer in layers},
        other_bytes=1 << 20,
        calibration=Calibration(
            ranges={layer.name: ActivationRange(low=-3.0, high=4.0) for layer in layers},
            histograms={layer.name: histogram for layer in layers},
            samples=256,
            seconds=9.0,
        ),
        environment=Environment(hardware="none: made up", backend="x86", threads=2, load=0.0, versions={}),
    )


def _results(spec: JobSpec, job_id: str, description: ModelDescription, count: int):  # type: ignore[no-untyped-def]
    rng, front = np.random.default_rng(0), LiveFront([], spec.objectives)
    names = [layer.name for layer in description.layers]
    for number in range(count):
        uniform = number if number < len(CHOICES) else None
        weights = rng.dirichlet(np.full(len(CHOICES), 0.5))
        taken = np.full(len(names), uniform) if uniform is not None else rng.choice(len(CHOICES), len(names), p=weights)
        choices = {name: CHOICES[choice] for name, choice in zip(names, taken, strict=True)}
        figures = _figures(taken, rng)
        trial = TrialRecord(
            job_id=job_id,
            number=number,
            kind=TrialKind.SEARCH if uniform is None else TrialKind.BASELINE,
            label=None if uniform is None else (f"uniform {CHOICES[uniform]}" if uniform else "fp32"),
            state=TrialState.COMPLETE,
            choices=choices,
            key=map_key(choices),
            figures=figures,
            violations={
                limit.metric: limit.violation(figures[limit.metric].value) for limit in spec.constraints.constraints()
            },
            seconds=1.0,
            forward_seconds=0.9,
            finished_at=datetime.now(UTC),
        )
        yield TrialResult(trial=trial, front=front.add(trial), latency=_samples(figures, rng), elapsed_s=1.0)


def _figures(taken: np.ndarray, rng: np.random.Generator) -> dict[str, Figure]:  # type: ignore[type-arg]
    loss = float(_LOSS[taken].mean())
    p50 = float(10.0 + 30.0 * _TIME[taken].mean()) * float(rng.normal(1, 0.01))
    memory = 1.0 + 4.0 * float(_BYTES[taken].sum())
    plain = {
        "accuracy": 0.8 * (1 - loss),
        "accuracy_drop": loss,
        "divergence": loss / 8,
        "weight_memory_mib": memory,
        "peak_memory_mib": memory + 8.0,
    }
    timed = {
        "latency_p50_ms": p50,
        "latency_p90_ms": 1.05 * p50,
        "latency_p95_ms": 1.1 * p50,
        "latency_ratio": p50 / 40,
    }
    return {name: Figure(value=value) for name, value in plain.items()} | {
        name: Figure(value=value, low=0.98 * value, high=1.02 * value) for name, value in timed.items()
    }


def _samples(figures: dict[str, Figure], rng: np.random.Generator) -> tuple[LatencySamples, ...]:
    p50 = figures["latency_p50_ms"].value
    drawn = [centre * (1 + 0.05 * rng.gamma(1.5, 0.6, size=100)) for centre in (p50, 40.0)]
    return (LatencySamples(batch_size=1, candidate_ms=drawn[0], reference_ms=drawn[1]),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=300)
    asked = parser.parse_args()
    store = open_store(asked.database)
    print(write_job(store, trials=asked.trials, layers=asked.layers))
    store.close()


if __name__ == "__main__":
    main()
