"""The estimate without gradients: a layer's error relative to its own output.

It ignores everything after the layer, so the estimates of each choice are scaled to the measured divergence of
its uniform map. It still ranks layers less accurately than the gradient sketch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch

from workers import quality
from workers.model.prepared import PreparedModel
from workers.sensitivity.recording import Call, errors
from workers.task import Batch, Task


def relative_errors(
    calls: Sequence[Call],
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    *,
    done: Callable[[str], object],
) -> dict[tuple[str, str], float]:
    """Return (layer, choice) -> squared error of the layer's outputs, relative to their squared norm.

    ``done`` gets the layer of every call, when it is done.
    """
    error: dict[tuple[str, str], float] = defaultdict(float)
    signal: dict[str, float] = defaultdict(float)
    for call in calls:
        signal[call.layer] += _energy(call.output)
        for choice in choices[call.layer]:
            error[call.layer, choice] += _energy(errors(call, prepared.module(call.layer, choice)))
        done(call.layer)
    return {key: value / max(signal[key[0]], torch.finfo(torch.float64).tiny) for key, value in error.items()}


def scaled_to_uniform(
    found: Mapping[tuple[str, str], float], task: Task, prepared: PreparedModel, batches: Sequence[Batch]
) -> dict[tuple[str, str], float]:
    """Return the relative errors times one factor per choice, so that they sum to its uniform map's divergence.

    Layers that overflow are excluded from that map, because they would hide the effect of the others.
    """
    prepared.reset()
    reference = quality.outputs_on(task, prepared.model, batches)
    scales = {}
    for choice in {choice for _, choice in found}:
        members = [layer for (layer, name), value in found.items() if name == choice and math.isfinite(value)]
        prepared.apply(dict.fromkeys(members, choice))
        diverged = quality.divergence(quality.outputs_on(task, prepared.model, batches), reference, task.output_kind)
        total = sum(found[layer, choice] for layer in members)
        scales[choice] = float(diverged.mean()) / total if total > 0 else 0.0
    prepared.reset()
    return {(layer, choice): value * scales[choice] for (layer, choice), value in found.items()}


def _energy(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().sum())
