"""Record everything that a search over one task could measure, so that samplers can be compared in seconds.

    python benchmarks/search/record.py minilm-lee

Measured for real: the divergence of every layer and choice alone on the evaluation data, its
interactions (products of layer errors with random gradients, on the same data), the latency of every
layer in place, the latency of the uniform maps, and the probes a job would start from, with their cost
in full evaluations. The divergence of a map is then

    mean over samples and vectors of (sum over layers of products)^2 / 2,

with the products scaled so that each layer alone diverges as measured. Its latency is the sum of its layers' latencies
and of the cost of precision changes between neighbouring layers. The former are scaled per choice to match the measured
uniform map; the latter is measured on alternating maps and assumed to grow as a power of the number of changes.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from replay import mixing_of

from search_spaces.choice import FULL_PRECISION, choice_named
from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.sensitivity.gradient import _products, random_vector
from workers.sensitivity.recording import errors, record
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split
from workers.tasks import load_task_file
from workers.timing.estimates import latency_ratio

HERE = Path(__file__).parent
FOLDER = HERE / "recordings"
#: Random vectors per sample, and timings per layer.
VECTORS, TIMINGS = 8, 6
#: Products kept per layer and choice.
MOST_PRODUCTS = 1024
#: Factors by which the sum of layers may miss a uniform map; beyond them the miss is spread evenly instead.
SANE = (0.5, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--latency-only", action="store_true", help="keep the divergences recorded before")
    arguments = parser.parse_args()
    name = arguments.task
    load_task_file(str(HERE / "models.py"))
    evaluator = Evaluator(
        WorkerSetup(task=name, measurement=MeasurementSettings(repeats=60, batch_sizes=(arguments.batch_size,)))
    )
    layers = [layer.name for layer in evaluator.description.layers if layer.frozen_reason is None]
    choices = {layer: list(evaluator.description.layer_bytes[layer]) for layer in layers}
    probes = evaluator.probe()
    ratios, unit_s = uniform_maps(evaluator, choices)
    products = recorded_products(name) if arguments.latency_only else measured_products(evaluator, choices)
    latency = layer_latencies(evaluator, choices, ratios)
    mixing = price_of_mixing(evaluator, choices, ratios, latency)
    keys = list(products)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        layers=np.array([layer for layer, _ in keys]),
        choices=np.array([choice for _, choice in keys]),
        products=np.stack([products[key] for key in keys]).astype(np.float32),
        latency=np.array([latency[key] for key in keys]),
        memory_bytes=np.array([evaluator.description.layer_bytes[layer][choice] for layer, choice in keys]),
        other_bytes=evaluator.description.other_bytes,
        groups=json.dumps({layer.name: layer.group for layer in evaluator.description.layers if layer.name in choices}),
        probes=json.dumps([[p.layer, p.choice, p.divergence, p.latency_ms] for p in probes.layers]),
        mixing=mixing,
        probes_pass_ms=probes.pass_ms,
        probes_units=probes.seconds / unit_s,
        hardware=evaluator.description.environment.hardware,
    )
    print(
        f"{name}: {len(layers)} layers, probes cost {probes.seconds / unit_s:.1f} full evaluations, "
        f"alternating precisions {mixing:.3f} in latency ratio; uniform maps {ratios}"
    )


def uniform_maps(evaluator: Evaluator, choices: dict[str, list[str]]) -> tuple[dict[str, float], float]:
    """Return choice -> measured latency ratio of its uniform map, and the median seconds of an evaluation."""
    ratios, seconds = {}, []
    for choice in dict.fromkeys(name for names in choices.values() for name in names if name != FULL_PRECISION.name):
        names = {layer: choice for layer, legal in choices.items() if choice in legal}
        measurement = evaluator.measure(Candidate(number=0, choices=names))
        ratios[choice] = latency_ratio(measurement.latency[0]).value
        seconds.append(measurement.seconds)
    return ratios, float(np.median(seconds))


def divergences_alone(evaluator: Evaluator, choices: dict[str, list[str]]) -> dict[tuple[str, str], float]:
    return {
        (layer, choice): evaluator.quality.of({layer: choice}, Split.EVALUATION)[1]
        for layer, names in choices.items()
        for choice in names
        if choice != FULL_PRECISION.name
    }


def recorded_products(name: str) -> dict[tuple[str, str], np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return dict(
            zip(zip(map(str, data["layers"]), map(str, data["choices"]), strict=True), data["products"], strict=True)
        )


def measured_products(evaluator: Evaluator, choices: dict[str, list[str]]) -> dict[tuple[str, str], np.ndarray]:
    """Return (layer, choice) -> products, scaled so that half their mean square is the layer's divergence alone."""
    raw = thinned(products_with_gradients(evaluator, choices))
    alone = divergences_alone(evaluator, choices)
    return {key: product * _factor(product, alone.get(key, 0.0)) for key, product in raw.items()}


def thinned(products: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    size = len(next(iter(products.values())))
    kept = np.sort(np.random.default_rng(0).permutation(size)[:MOST_PRODUCTS])
    return {key: product[kept] for key, product in products.items()}


def products_with_gradients(evaluator: Evaluator, choices: dict[str, list[str]]) -> dict[tuple[str, str], np.ndarray]:
    """Return (layer, choice) -> products of its error with random gradients, shape ``(samples * vectors,)``."""
    task, prepared, generator = evaluator._task, evaluator.reference.prepared, torch.Generator().manual_seed(1)
    prepared.reset()
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for batch in task.evaluation(Split.EVALUATION):
        calls, outputs = record(task, prepared.model, choices, batch, differentiable=True)
        at = [call.output for call in calls]
        of_batch: dict[tuple[str, str], torch.Tensor] = {}
        vectors = [random_vector(outputs.detach(), task.output_kind, generator) for _ in range(VECTORS)]
        gradients = [torch.autograd.grad(outputs, at, v, retain_graph=True, allow_unused=True) for v in vectors]
        for index, call in enumerate(calls):
            for choice in choices[call.layer]:
                error = errors(call, prepared.module(call.layer, choice))
                product = _products([gradient[index] for gradient in gradients], error, len(outputs))
                # A product shared by all samples is spread over them with the same mean square.
                each = product.expand(VECTORS, len(outputs)) * (product.shape[1] / len(outputs)) ** 0.5
                of_batch[call.layer, choice] = of_batch.get((call.layer, choice), torch.zeros(())) + each.flatten()
        for key, product in of_batch.items():
            found.setdefault(key, []).append(product.numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _factor(product: np.ndarray, alone: float) -> float:
    predicted = float(np.mean(product**2) / 2)
    return float(np.sqrt(alone / predicted)) if predicted > 0 else 0.0


def layer_latencies(
    evaluator: Evaluator, choices: dict[str, list[str]], ratios: dict[str, float]
) -> dict[tuple[str, str], float]:
    """Return (layer, choice) -> change of the latency ratio, the median of several timings."""
    changes: dict[tuple[str, str], list[float]] = {}
    for _ in range(TIMINGS):
        latency_ms, pass_ms = evaluator.latency.of_layers(evaluator.description.layers, choices)
        for (layer, choice), elapsed_ms in latency_ms.items():
            change = (elapsed_ms - latency_ms[layer, FULL_PRECISION.name]) / pass_ms
            changes.setdefault((layer, choice), []).append(change)
        time.sleep(1.0)
    medians = {key: float(np.median(values)) for key, values in changes.items()}
    for choice, ratio in ratios.items():
        keys = [key for key in medians if key[1] == choice]
        total = sum(medians[key] for key in keys)
        factor = (ratio - 1.0) / total
        for key in keys:
            if SANE[0] < factor < SANE[1]:
                medians[key] *= factor
            else:
                medians[key] += (ratio - 1.0 - total) / len(keys)
    return medians


def price_of_mixing(
    evaluator: Evaluator,
    choices: dict[str, list[str]],
    ratios: dict[str, float],
    latency: dict[tuple[str, str], float],
) -> float:
    """Return the cost in latency ratio of a change of precision at every layer."""
    fastest, *others = sorted(ratios, key=ratios.__getitem__)
    other = next(name for name in others if choice_named(name).precision is not choice_named(fastest).precision)
    turns, missed = [], []
    for run in (1, 4, len(choices) // 2):
        names = {
            layer: (fastest, other)[number // run % 2]
            for number, (layer, legal) in enumerate(choices.items())
            if {fastest, other} <= set(legal)
        }
        measurement = evaluator.measure(Candidate(number=0, choices=names, final=True))
        expected = 1.0 + sum(latency[key] for key in names.items())
        missed.append(latency_ratio(measurement.latency[0]).value - expected)
        turns.append(mixing_of([(names.get(layer, FULL_PRECISION.name)) for layer in choices]))
    return max(0.0, float(np.dot(turns, missed) / np.dot(turns, turns)))


if __name__ == "__main__":
    main()
