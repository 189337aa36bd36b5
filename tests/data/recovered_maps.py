"""Recovered maps without training: some integers of their layers are moved by one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autotune.maps.map_file import MapFile
from search_spaces.quantization_map import QuantizationMap
from workers.recovered import digest
from workers.recovery.grid import Grid
from workers.recovery.learned import LearnedLayer, encoded


def moved(model: nn.Module, quantization: QuantizationMap, seed: int = 0) -> dict[str, LearnedLayer]:
    """Learned weights for each linear or convolutional layer with integer weights; ``model`` is in full precision."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, choice in quantization.choices.items():
        module = model.get_submodule(name)
        if not choice.has_integer_weights or not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            continue
        grid = Grid.of(module.weight, choice, quantization.ranges.get(name))
        start = grid.start()
        moves = torch.randint(-1, 2, start.shape, generator=generator)
        steps = torch.where(grid.fixed, start, (start + moves).clamp(grid.low, grid.high))
        bias = None if module.bias is None else module.bias.detach() + 0.1
        found[name] = LearnedLayer(steps=steps.to(torch.int8).reshape(module.weight.shape), bias=bias)
    return found


def recovered(document: Mapping[str, Any], model: nn.Module, seed: int = 0) -> tuple[dict[str, Any], bytes]:
    """The map with the weights of ``moved``, as the recovery of trial 1, and the content of its sidecar."""
    learned = moved(model, MapFile.model_validate(document).quantization_map(), seed)
    content = encoded(learned)
    layers = {
        name: layer | {"input_means": None} if name in learned else layer for name, layer in document["layers"].items()
    }
    recovery = {
        "parent": 1, "method": "moves", "seconds": 1.0, "samples": 48,
        "validation": {"samples": 16, "before": 0.2, "after": 0.1}, "layers": list(learned),
        "sidecar": {
            "file": f"map-{digest(content)[:12]}.safetensors", "sha256": digest(content), "bytes": len(content)
        },
    }  # fmt: skip
    return {**document, "layers": layers, "recovery": recovery}, content
