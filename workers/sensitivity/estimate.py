"""Estimate the sensitivity of every layer to every choice, by gradients where there are any."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from workers.prepared import PreparedModel
from workers.sensitivity import gradient, local
from workers.sensitivity.recording import Call, record
from workers.setup import Estimator
from workers.task import Batch, Task

#: Random vectors for each sample, and samples looked at, at least: 48 products in all, so that the
#: standard error of their mean square is about 20 %. Twice as many rank layers no better.
_VECTORS, _SAMPLES = 4, 12

#: Largest divergence predicted; stands for more, and for the infinity or nan of a layer that overflows.
MOST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What every layer costs in divergence if it alone takes a choice."""

    #: (layer name, choice name) -> predicted divergence; 0 where the outputs do not depend on the layer.
    divergence: Mapping[tuple[str, str], float]
    estimator: Estimator
    #: Samples looked at.
    samples: int


def estimate(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
) -> Sensitivity:
    """Return the sensitivities of a model from a few of ``batches``, chosen at random.

    Full precision is installed when the call returns.

    Args:
        task: runs the model, and says what its outputs are.
        prepared: the model and its prepared layers.
        choices: layer name -> names of the choices to look at, full precision left out.
        batches: calibration data; not what the search is judged by.
        seed: of the random vectors and the choice of batches.
    """
    prepared.reset()
    shuffled = random.Random(seed).sample(list(batches), len(batches))
    try:
        return _by_gradient(task, prepared, choices, shuffled, torch.Generator().manual_seed(seed))
    except RuntimeError:  # the outputs have no gradient, or an operation on the way has none
        return _by_local_error(task, prepared, choices, shuffled)


def _by_gradient(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    generator: torch.Generator,
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    samples = 0
    for _, calls, outputs in _recorded(task, prepared, choices, batches, differentiable=True):
        squares = gradient.squared_products(
            calls, outputs, task.output_kind, prepared, choices, vectors=_VECTORS, generator=generator
        )
        for key, value in squares.items():
            sums[key] += value
        samples += len(outputs)
    divergence = {key: _bounded(value / (2.0 * _VECTORS * samples)) for key, value in sums.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.GRADIENT, samples=samples)


def _by_local_error(
    task: Task, prepared: PreparedModel, choices: Mapping[str, Sequence[str]], batches: Sequence[Batch]
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    samples, used = 0, []
    for batch, calls, outputs in _recorded(task, prepared, choices, batches, differentiable=False):
        for key, value in local.relative_errors(calls, prepared, choices).items():
            sums[key] += value * len(outputs)
        samples += len(outputs)
        used.append(batch)
    means = {key: value / samples for key, value in sums.items()}
    scaled = local.scaled_to_uniform(means, task, prepared, used)
    divergence = {key: _bounded(value) for key, value in scaled.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.LOCAL, samples=samples)


def _recorded(
    task: Task, prepared: PreparedModel, layers: Iterable[str], batches: Sequence[Batch], *, differentiable: bool
) -> Iterator[tuple[Batch, list[Call], torch.Tensor]]:
    """Yield batches with the layers' calls and the outputs, until enough samples were seen."""
    samples = 0
    for batch in batches:
        calls, outputs = record(task, prepared.model, layers, batch, differentiable=differentiable)
        yield batch, calls, outputs
        samples += len(outputs)
        if samples >= _SAMPLES:
            return


def _bounded(value: float) -> float:
    return value if value <= MOST else MOST  # no comparison holds for nan
