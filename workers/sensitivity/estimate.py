"""Estimate the sensitivity of every layer to every choice, by gradients where there are any."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from workers.device import memory
from workers.model.prepared import PreparedModel
from workers.sensitivity import gradient, local
from workers.sensitivity.recording import Call, record
from workers.setup import Estimator
from workers.task import Batch, Task

#: Random vectors for each sample, and samples looked at, at least: 48 products in all, so that the
#: standard error of their mean square is about 20 %. Twice as many rank layers no better.
_VECTORS, _SAMPLES = 4, 12

#: Bytes of activations and gradients held at once; see ``estimate``.
RECORDED_BYTES = 1 << 30

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
    most_bytes: int = RECORDED_BYTES,
    seed: int = 0,
) -> Sensitivity:
    """Return the sensitivities of a model from a few of ``batches``, chosen at random.

    Full precision is installed when the call returns.

    Args:
        task: runs the model, and says what its outputs are.
        prepared: the model and its prepared layers.
        choices: layer name -> names of the choices to look at, full precision left out.
        batches: calibration data; not what the search is judged by.
        most_bytes: what the layers take and return, and the gradients, may have at once; where they have more, the
            layers are looked at in turn, with a pass for each turn.
        seed: of the random vectors and the choice of batches.
    """
    prepared.reset()
    shuffled = random.Random(seed).sample(list(batches), len(batches))
    try:
        return _by_gradient(task, prepared, choices, shuffled, most_bytes, torch.Generator().manual_seed(seed))
    except RuntimeError:  # the outputs have no gradient, or an operation on the way has none
        return _by_local_error(task, prepared, choices, shuffled, most_bytes)


def _by_gradient(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    most_bytes: int,
    generator: torch.Generator,
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    samples = 0
    for batch in batches:
        state, reached, count = generator.get_state(), False, 0
        for calls, outputs in _recorded(task, prepared, choices, batch, gradients=_VECTORS, most_bytes=most_bytes):
            generator.set_state(state)  # all layers see the same vectors
            squares = gradient.squared_products(
                calls, outputs, task.output_kind, prepared, choices, vectors=_VECTORS, generator=generator
            )
            for key, value in squares.items():
                sums[key] += value
            reached, count = reached or outputs.requires_grad, len(outputs)
            del calls, outputs  # the next pass needs their memory
        if not reached:
            raise RuntimeError("the outputs have no gradient")
        samples += count
        if samples >= _SAMPLES:
            break
    divergence = {key: _bounded(value / (2.0 * _VECTORS * samples)) for key, value in sums.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.GRADIENT, samples=samples)


def _by_local_error(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    most_bytes: int,
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    samples, used = 0, []
    for batch in batches:
        count = 0
        for calls, outputs in _recorded(task, prepared, choices, batch, gradients=0, most_bytes=most_bytes):
            count = len(outputs)
            for key, value in local.relative_errors(calls, prepared, choices).items():
                sums[key] += value * count
            del calls, outputs
        samples += count
        used.append(batch)
        if samples >= _SAMPLES:
            break
    means = {key: value / samples for key, value in sums.items()}
    scaled = local.scaled_to_uniform(means, task, prepared, used)
    divergence = {key: _bounded(value) for key, value in scaled.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.LOCAL, samples=samples)


def _recorded(
    task: Task, prepared: PreparedModel, layers: Iterable[str], batch: Batch, *, gradients: int, most_bytes: int
) -> Iterator[tuple[list[Call], torch.Tensor]]:
    """Yield the layers' calls with the outputs, from as many passes over the batch as the memory asks for."""
    left = list(layers)
    while True:
        recording, outputs = record(task, prepared.model, left, batch, gradients=gradients, most_bytes=most_bytes)
        left = list(recording.left)
        yield recording.calls, outputs
        if not left:
            return
        del recording, outputs
        memory.release()


def _bounded(value: float) -> float:
    return value if value <= MOST else MOST  # no comparison holds for nan
