"""Layers whose weights are stored in fp16 and widened to fp32 in every pass."""

import copy
from typing import Any

from torch import nn
from torch.func import functional_call

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer, stored_bytes
from workers.backends.rounding.weights import fp16


class WidenedFp16(PackedLayer):
    """Any layer with fp16 weights; biases, products and sums stay in fp32. This saves memory, not time."""

    def __init__(self, module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(module)
        stored = {
            name: fp16(parameter) if parameter.dim() > 1 else parameter.detach().clone()
            for name, parameter in module.named_parameters()
        }
        twin = copy.copy(module)
        twin._parameters = dict(module._parameters)  # keeps parameters that are None
        for name, tensor in stored.items():
            twin._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        # In a list, so that PyTorch does not register the stored weights as parameters of this layer.
        self._twin = [twin]
        self.packed_bytes = stored_bytes(*stored.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the original's output with the stored weights."""
        (twin,) = self._twin
        return functional_call(twin, {name: stored.float() for name, stored in twin.named_parameters()}, args, kwargs)
