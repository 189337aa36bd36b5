"""Convolutions on x86 CPUs: bf16, W8A8 static and dynamic.

2-d kernels compute in channels_last. The output has the memory format the original would give it:
channels_last if input or weight is, else contiguous, so that ``view`` works where it did. Turning it
back costs a third to a half of a quantized convolution; a model converted by
``model.to(memory_format=torch.channels_last)`` does not pay it.

Dynamic W8A8 takes its range at run time and then runs the static kernel: PyTorch's own
``quantized.conv2d_dynamic`` is no faster, and wrong for depthwise convolutions (PyTorch 2.13).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.quantization_map import ActivationRange
from workers.backends.activation_quantization import affine_of, to_uint8
from workers.backends.packed import PackedLayer, bias_of, stored_bytes
from workers.backends.weight_quantization import int8_per_channel

Conv = nn.Conv1d | nn.Conv2d


class Bf16Conv(PackedLayer):
    """A 1-d or 2-d convolution with weights and products in bf16; input and output in fp32."""

    def __init__(self, conv: Conv) -> None:
        super().__init__(conv)
        self._channels_last = _is_channels_last(conv.weight)
        weight = conv.weight.to(torch.bfloat16)
        self._weight = weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
        self._bias = bias_of(conv, torch.bfloat16)
        self._convolve = F.conv1d if isinstance(conv, nn.Conv1d) else F.conv2d
        self._geometry: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.packed_bytes = stored_bytes(self._weight, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution; (batch, in, ...) or (in, ...) -> (batch, out, ...) or (out, ...)."""
        convolved: torch.Tensor = self._convolve(x.to(torch.bfloat16), self._weight, self._bias, *self._geometry)
        keep = self._channels_last or _is_channels_last(x)
        return convolved.to(torch.float32, memory_format=torch.preserve_format if keep else torch.contiguous_format)


class Int8Conv(PackedLayer):
    """W8A8: per-channel symmetric weights; asymmetric uint8 input, per tensor, static or dynamic."""

    def __init__(self, conv: Conv, input_range: ActivationRange | None) -> None:
        super().__init__(conv)
        self._channels_last = _is_channels_last(conv.weight)
        values, self._scales = int8_per_channel(conv.weight)
        padding, self._padded_before = _padding(conv)
        self._geometry = (list(conv.stride), padding, list(conv.dilation), conv.groups)
        # The range is told at each call; what prepacking is told here changes neither result nor speed.
        self._packed = torch.ops.onednn.qconv_prepack(values.contiguous(), self._scales, 1.0, 0, *self._geometry, None)
        self._zero_points = torch.zeros(len(self._scales), dtype=torch.int32)
        self._bias = bias_of(conv)
        self._affine = None if input_range is None else input_range.affine_uint8()
        self._convolve = torch.ops.onednn.qconv1d_pointwise if values.dim() == 3 else torch.ops.onednn.qconv_pointwise
        self._dims = values.dim()
        self.packed_bytes = stored_bytes(self._packed, self._scales, self._zero_points, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution; (batch, in, ...) or (in, ...) -> (batch, out, ...) or (out, ...)."""
        if x.dim() < self._dims:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        last = _is_channels_last(x)
        # Looking for extremes is slow where memory order and dimension order differ.
        scale, zero_point = self._affine or affine_of(x.movedim(1, -1) if last else x)
        padded = F.pad(x, self._padded_before) if self._padded_before else x
        convolved: torch.Tensor = self._convolve(
            to_uint8(padded, scale, zero_point), scale, zero_point,
            self._packed, self._scales, self._zero_points, self._bias, *self._geometry,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return convolved if self._channels_last or last else convolved.contiguous()


def _is_channels_last(tensor: torch.Tensor) -> bool:
    # A 1x1 kernel is contiguous in both formats; only its strides tell which one is meant.
    return tensor.dim() == 4 and tensor.stride(1) == 1 and tensor.stride(-1) != 1


def _padding(conv: Conv) -> tuple[list[int], list[int]]:
    """Return the padding that is equal on both sides, and what to pad the input with before.

    ``same`` pads an odd total by one more at the end, which kernels cannot.
    """
    if conv.padding == "valid":
        return [0] * len(conv.kernel_size), []
    if conv.padding != "same":
        return [int(p) for p in conv.padding], []
    totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    # F.pad takes (begin, end) pairs from the last dimension to the first.
    before = [side for total in reversed(totals) for side in (0, total % 2)]
    return [total // 2 for total in totals], before if any(before) else []
