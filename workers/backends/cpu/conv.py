"""Convolutions on CPUs: bf16, W8A8 static and dynamic.

2-d kernels compute in channels_last. The output has the same memory format as the original's:
channels_last if input or weight is, else contiguous, so that ``view`` still works. Converting it
back costs a third to a half of a quantized convolution; a model converted with
``model.to(memory_format=torch.channels_last)`` avoids this cost.

This module works around three errors of PyTorch 2.13's kernels, each found by fuzzing against float64:

* ``quantized.conv2d_dynamic`` is wrong for depthwise convolutions. Dynamic W8A8 computes its range at
  run time and then runs the static kernel, which is as fast.
* With AMX, strided outputs one column wide are wrong in int8 and bf16. They run with stride 1, and
  only the first column is kept.
* int8 is wrong or crashes where the kernel covers padding only. This happens if padding exceeds the
  kernel's extent, or dilation steps over a small input. Such an input is padded before the kernel runs.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer, bias_of, stored_bytes
from workers.backends.rounding.activations import affine_of, to_steps, to_uint8
from workers.backends.rounding.weights import int8_per_channel

Conv = nn.Conv1d | nn.Conv2d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d


class _PackedConv(PackedLayer):
    """Base of all kernels: geometry and memory format."""

    def __init__(self, conv: Conv) -> None:
        super().__init__(conv)
        self._dims = conv.weight.dim()
        self._channels_last = _is_channels_last(conv.weight)
        self._reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        self._stride = list(conv.stride)
        self._padding, self._padded_before = _padding(conv, self._reach)
        self._dilation, self._groups = list(conv.dilation), conv.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution; (batch, in, ...) or (in, ...) -> (batch, out, ...) or (out, ...)."""
        if x.dim() < self._dims:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        padded = F.pad(x, self._padded_before) if self._padded_before else x
        one_wide = padded.shape[-1] + 2 * self._padding[-1] - self._reach[-1] <= self._stride[-1]
        convolved = self._convolve(padded, [*self._stride[:-1], 1] if one_wide else self._stride)
        if one_wide:
            convolved = convolved[..., :1]
        last = self._channels_last or _is_channels_last(x)
        memory_format = torch.channels_last if last else torch.contiguous_format
        return convolved.contiguous(memory_format=memory_format).to(torch.float32)

    def _convolve(self, x: torch.Tensor, stride: list[int]) -> torch.Tensor:
        raise NotImplementedError


class Bf16Conv(_PackedConv):
    """A 1-d or 2-d convolution with weights and products in bf16; input and output in fp32."""

    def __init__(self, conv: Conv, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(conv)
        weight = conv.weight.to(torch.bfloat16)
        self._weight = weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
        self._bias = bias_of(conv, torch.bfloat16)
        self._kernel = F.conv1d if isinstance(conv, nn.Conv1d) else F.conv2d
        self.packed_bytes = stored_bytes(self._weight, self._bias)

    def _convolve(self, x: torch.Tensor, stride: list[int]) -> torch.Tensor:
        convolved: torch.Tensor = self._kernel(
            x.to(torch.bfloat16), self._weight, self._bias, stride, self._padding, self._dilation, self._groups
        )
        return convolved


class Bf16ConvTranspose(PackedLayer):
    """A transposed 1-d or 2-d convolution with weights and products in bf16; input and output in fp32.

    No int8 kernel of PyTorch 2.13 is usable: all take a single scale for the weights, oneDNN's and FBGEMM's are
    wrong for some shapes, and QNNPACK's is several times slower than fp32.
    """

    def __init__(self, conv: ConvTranspose, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(conv)
        self._half = copy.deepcopy(conv).to(torch.bfloat16)
        self.packed_bytes = stored_bytes(*self._half.parameters())

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Return the convolution; (batch, in, ...) or (in, ...) -> (batch, out, ...) or (out, ...)."""
        convolved: torch.Tensor = self._half(x.to(torch.bfloat16), output_size)
        return convolved.to(torch.float32)


class Int8Conv(_PackedConv):
    """W8A8 by oneDNN: per-channel symmetric weights; asymmetric per-tensor uint8 input, static or dynamic."""

    def __init__(self, conv: Conv, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(conv)
        values, self._scales = int8_per_channel(conv.weight, bits=choice.weight_bits)
        self._pack(values)
        self._bias = bias_of(conv)
        self._affine = None if input_range is None else input_range.affine_uint8()
        # Scales and zero points have four bytes each.
        self.packed_bytes = values.nbytes + (4 + 4) * len(self._scales) + stored_bytes(self._bias)

    def _pack(self, values: torch.Tensor) -> None:
        # Each call passes the actual range; the one given to prepacking affects neither result nor speed.
        self._packed = torch.ops.onednn.qconv_prepack(
            values.contiguous(), self._scales, 1.0, 0, self._stride, self._padding, self._dilation, self._groups, None
        )
        self._zero_points = torch.zeros(len(self._scales), dtype=torch.int32)
        self._kernel = torch.ops.onednn.qconv1d_pointwise if self._dims == 3 else torch.ops.onednn.qconv_pointwise

    def _convolve(self, x: torch.Tensor, stride: list[int]) -> torch.Tensor:
        # Finding extremes is slow if memory order and dimension order differ.
        return self._product(x, stride, *(self._affine or affine_of(x.movedim(1, -1) if _is_channels_last(x) else x)))

    def _product(self, x: torch.Tensor, stride: list[int], scale: float, zero_point: int) -> torch.Tensor:
        convolved: torch.Tensor = self._kernel(
            to_uint8(x, scale, zero_point), scale, zero_point,
            self._packed, self._scales, self._zero_points, self._bias,
            stride, self._padding, self._dilation, self._groups,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return convolved


class WidenedInt8Conv(Int8Conv):
    """W8A8 with the integers computed in fp32, exact enough on any processor: sums are rounded, never saturated."""

    def _pack(self, values: torch.Tensor) -> None:
        self._values = values
        self._convolution = F.conv1d if self._dims == 3 else F.conv2d

    def _product(self, x: torch.Tensor, stride: list[int], scale: float, zero_point: int) -> torch.Tensor:
        steps, weight = to_steps(x, scale, zero_point), self._values.float()
        sums = self._convolution(steps, weight, None, stride, self._padding, self._dilation, self._groups)
        per_channel = (-1, *[1] * (self._dims - 2))
        convolved = sums.mul_((self._scales * scale).view(per_channel))
        return convolved if self._bias is None else convolved.add_(self._bias.view(per_channel))


def _is_channels_last(tensor: torch.Tensor) -> bool:
    # A 1x1 kernel or a single channel is contiguous in both formats; only the strides show which one is meant.
    return tensor.dim() == 4 and tensor.stride(0) > tensor.stride(1) == 1 and tensor.stride(3) >= tensor.shape[1]


def _padding(conv: Conv, reach: list[int]) -> tuple[list[int], list[int]]:
    """Return the padding for the kernel, and the padding to apply to the input before, in the order of ``F.pad``.

    Args:
        conv: the original.
        reach: extent of the kernel minus one, per dimension.
    """
    sides = [(0, 0)] * len(reach)
    if conv.padding == "same":
        sides = [(total // 2, total - total // 2) for total in reach]
    elif conv.padding != "valid":
        sides = [(int(p), int(p)) for p in conv.padding]
    for (begin, end), r, dilation in zip(sides, reach, conv.dilation, strict=True):
        # Kernels also cannot pad asymmetrically.
        if begin != end or begin > r or (begin and dilation > 1):
            # F.pad expects the last dimension first.
            return [0] * len(reach), [side for pair in reversed(sides) for side in pair]
    return [begin for begin, _ in sides], []
