"""Recipes of PyTorch and torchao that are applied to a model in place, without data, wherever it is deployed."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def plain(model: nn.Module) -> nn.Module:
    """Return the model as it is."""
    return model


def default_recipe(model: nn.Module) -> nn.Module:
    """Return the model with what most guides show: ``quantize_dynamic`` on all linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return quantized


def torchao(model: nn.Module, *, config: str) -> nn.Module:
    """Return the model with a configuration of torchao on its linear layers."""
    from torchao import quantization

    quantization.quantize_(model, getattr(quantization, config)())
    return model


class Autocast(nn.Module):
    """A model in PyTorch's automatic mixed precision, bf16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's result."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(*args, **kwargs)


#: Name -> function that returns the quantized model; it may change the model that it is given.
RECIPES: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "fp32": plain,
    "bf16": Autocast,
    "quantize_dynamic": default_recipe,
    "int8 dynamic": functools.partial(torchao, config="Int8DynamicActivationInt8WeightConfig"),
    "int8 weights": functools.partial(torchao, config="Int8WeightOnlyConfig"),
}
