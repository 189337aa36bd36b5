"""The estimate without gradients: how large a layer's error is beside its own output.

It knows nothing of what comes after the layer, so each choice is scaled to what its uniform map was
measured to diverge. It still ranks layers worse than the gradient sketch does.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from workers import quality
from workers.model.prepared import PreparedModel
from workers.sensitivity.recording import Call, errors
from workers.task import Batch, Task


def relative_errors(
    calls: Sequence[Call], prepared: PreparedModel, choices: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float]:
    """Return (layer, choice) -> squared error of the layer's outputs over their squares."""
    error: dict[tuple[str, str], float] = defaultdict(float)
    signal: dict[str, float] = defaultdict(float)
    for call in calls:
        signal[call.layer] += _energy(call.output)
        for choice in choices[call.layer]:
            error[call.layer, choice] += _energy(errors(call, prepared.module(call.layer, choice)))
    return {key: value / max(signal[key[0]], torch.finfo(torch.float64).tiny) for key, value in error.items()}


def scaled_to_uniform(
    found: Mapping[tuple[str, str], float], task: Task, prepared: PreparedModel, batches: Sequence[Batch]
) -> dict[tuple[str, str], float]:
    """Return the relative errors times one factor a choice, so that they sum to its uniform map's divergence.

    Layers that overflow are left out of that map, or nothing could be told about the others.
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
