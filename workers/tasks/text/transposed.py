"""Conversion of transformers' transposed linear layers, as in GPT-2, to ``nn.Linear``."""

import torch
from torch import nn


def straighten(model: nn.Module) -> None:
    """Replace every ``Conv1D`` of transformers, which is a linear layer, by an ``nn.Linear``, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (type(child).__module__, type(child).__name__) == ("transformers.pytorch_utils", "Conv1D"):
                weight, bias = (child.get_parameter(part).data for part in ("weight", "bias"))
                parent.register_module(name, linear_of(weight.T, bias))


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """Return a layer with the given weight, shape ``(out, in)``, which it shares if the weight is contiguous."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.register_parameter("bias", nn.Parameter(bias))
    return layer
