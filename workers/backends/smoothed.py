"""Linear layers that divide their input channels before quantizing them: SmoothQuant (arXiv:2211.10438)."""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer


class SmoothedLinear(PackedLayer):
    """A prepared static layer with multiplied weights, whose inputs are divided to compensate.

    The factors are not folded into the previous layer, because other layers may read its output. Latency therefore
    includes the multiplication of the inputs.
    """

    def __init__(
        self,
        linear: nn.Linear,
        input_range: ActivationRange,
        prepare: Callable[[nn.Linear, ActivationRange], PackedLayer],
        device: str = "cpu",
    ) -> None:
        """Take the full-precision layer, its range with factors, and a function that prepares a layer on the device."""
        super().__init__(linear)
        assert input_range.smoothing is not None
        factors = torch.tensor(input_range.smoothing.factors, device=linear.weight.device)
        inner = prepare(multiplied(linear, factors), input_range.smoothing.range)
        self._inner = inner
        self._reciprocals = factors.reciprocal().to(device)
        self.packed_bytes = inner.packed_bytes + self._reciprocals.nbytes

    def dynamic(self) -> Self | None:
        """Return a layer that divides its input by the same factors; see ``PackedLayer.dynamic``."""
        inner = self._inner.dynamic()
        if inner is None:
            return None
        twin = copy.copy(self)
        twin._modules = {**self._modules, "_inner": inner}
        return twin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        outputs: torch.Tensor = self._inner(x * self._reciprocals)
        return outputs


def multiplied(linear: nn.Linear, factors: torch.Tensor) -> nn.Linear:
    """Return the layer with the weights of each input channel multiplied by its factor, and the same bias."""
    with torch.device("meta"):
        scaled = nn.Linear(linear.in_features, linear.out_features, bias=False)
    scaled.weight = nn.Parameter(linear.weight.detach() * factors, requires_grad=False)
    scaled.bias = linear.bias
    return scaled
