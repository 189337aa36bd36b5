"""A layer as part of OpenVINO's graph, which PyTorch can emulate."""

import torch
from torch import nn

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.layer import OnnxLayer
from workers.backends.openvino.fragments import fragment


class OpenVinoLayer(OnnxLayer):
    """A layer as part of OpenVINO's graph. See ``OnnxLayer``; products in bf16 have inputs and outputs in bf16."""

    def __init__(self, original: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(original, choice, input_range, fragment(original, choice, input_range))
        self._bf16 = choice.precision is Precision.BF16 and not isinstance(original, nn.Embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nodes' output for ``x``, up to rounding in the last bits."""
        if not self._bf16:
            return super().forward(x)
        return _nearest_bf16(super().forward(_converted_to_bf16(x)))

    def _stored(self, original: nn.Module) -> dict[str, torch.Tensor]:
        stored = super()._stored(original)
        if self._bf16 and isinstance(original.bias, torch.Tensor):
            stored["bias"] = _nearest_bf16(original.bias)
        return stored


def _nearest_bf16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).float()


def _converted_to_bf16(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` rounded as by OpenVINO's operator ``Convert``.

    What lies in the upper half between an odd and an even number goes up to the even one; everything else is cut off.
    Seen with OpenVINO 2026.4.1 where shapes vary; where they are fixed, and in products, it rounds to the nearest.
    """
    bits = x.view(torch.int32)
    return ((bits + ((bits & 0x10000) >> 1)) & -0x10000).view(torch.float32)
