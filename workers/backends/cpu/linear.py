"""Linear layers on CPUs: W8A8 static, dynamic and per token, int8 and int4 weight-only, bf16 and fp16.

Each layer is built from the full-precision layer, its choice, and the calibrated range if the choice needs one.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.fbgemm import packed_fp16
from workers.backends.cpu.int8_products import Int8Product, packed_once
from workers.backends.packed import PackedLayer, bias_of, stored_bytes
from workers.backends.rounding.activations import ZERO_OF_ROWS, affine_of, scales_of_rows
from workers.backends.rounding.weights import INT4_GROUP, fp16, in_pairs, int4_per_group, int8_per_channel
from workers.backends.smoothed import SmoothedLinear


class Int8Linear(PackedLayer):
    """W8A8: per-channel symmetric weights; asymmetric uint8 input, per tensor, static or dynamic."""

    def __init__(
        self,
        linear: nn.Linear,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        product: type[Int8Product],
    ) -> None:
        super().__init__(linear)
        self._bias = bias_of(linear)
        self._product = packed_once(product, linear, choice.weight_bits, None if choice.is_per_token else self._bias)
        self._affine = None if input_range is None else input_range.affine_uint8()
        self._out_features = linear.out_features
        # Scales and zero points have four bytes each.
        self.shared = self._product, linear.weight.numel() + (4 + 4) * linear.out_features
        self.packed_bytes = self.shared[1] + stored_bytes(self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        scale, zero_point = self._affine or affine_of(x)
        product = self._product(x.reshape(-1, x.shape[-1]), scale, zero_point, self._bias)
        return product.view(*x.shape[:-1], self._out_features)


class Int8PerTokenLinear(Int8Linear):
    """Dynamic W8A8 with per-row scales of the input: the same product, scaled afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        scales = scales_of_rows(rows)
        product = self._product(rows / scales, 1.0, ZERO_OF_ROWS, None).mul_(scales)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], self._out_features)


def int8_linear(
    linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None, product: type[Int8Product]
) -> PackedLayer:
    """Return a prepared W8A8 layer with any method; ``product`` computes its products."""
    if choice.is_smooth:
        assert input_range is not None
        return SmoothedLinear(linear, input_range, lambda inner, divided: Int8Linear(inner, choice, divided, product))
    return (Int8PerTokenLinear if choice.is_per_token else Int8Linear)(linear, choice, input_range, product)


class Int8WeightOnlyLinear(PackedLayer):
    """Per-channel symmetric int8 weights without activation quantization; the number of rows selects the kernel."""

    def __init__(self, linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        self._values, self._scales = int8_per_channel(linear.weight, torch.bfloat16)
        self._bias = bias_of(linear)
        self._kernels: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {1: self._fp32}
        self.packed_bytes = stored_bytes(self._values, self._scales, self._bias)

    def follow(self, plan: Mapping[int, str]) -> None:
        """Use kernels by a plan of number of rows -> name; other numbers of rows use the nearest one."""
        kernels = {"int8pack": self._int8pack, "bf16": self._bf16, "fp32": self._fp32}
        self._kernels = {rows: kernels[name] for rows, name in plan.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        kernel = self._kernels.get(len(rows)) or self._kernels[_nearest(len(rows), self._kernels)]
        product = kernel(rows)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], len(self._scales))

    def _int8pack(self, rows: torch.Tensor) -> torch.Tensor:
        # Reads each weight once from memory, which bounds the decoding of one token. It requires contiguous rows.
        halves = rows.to(torch.bfloat16).contiguous()
        return torch._weight_int8pack_mm(halves, self._values, self._scales).to(torch.float32)

    def _bf16(self, rows: torch.Tensor) -> torch.Tensor:
        product = F.linear(rows.to(torch.bfloat16), self._values.to(torch.bfloat16))
        return product.to(torch.float32).mul_(self._scales)

    def _fp32(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, self._values.to(torch.float32)).mul_(self._scales)


def _nearest(rows: int, known: Mapping[int, object]) -> int:
    return min(known, key=lambda other: abs(math.log(max(1, rows)) - math.log(max(1, other))))


class Int4WeightOnlyLinear(PackedLayer):
    """Per-group asymmetric int4 weights, bf16 products, no activation quantization.

    The packed layout depends on the processor, and no kernel unpacks it. Many rows therefore use
    the same kernel as one row, although it is made for few.
    """

    def __init__(self, linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        values, scales, zeros = _int4(linear, input_range)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        # The kernel requires shape (groups, out, 2).
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous()
        self._bias = bias_of(linear)
        self._out_features = linear.out_features
        self.packed_bytes = stored_bytes(self._packed, self._scales_and_zeros, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()  # the kernel requires it
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self._packed, INT4_GROUP, self._scales_and_zeros
        )
        product = product.to(torch.float32)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], self._out_features)


class WidenedInt4Linear(PackedLayer):
    """The same weights, two per byte, widened to fp32 in every pass; for many rows, and for any processor."""

    def __init__(self, linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        values, self._scales, self._zeros = _int4(linear, input_range)
        self._pairs = in_pairs(values.view(*self._scales.shape, INT4_GROUP))
        self._bias = bias_of(linear)
        self.packed_bytes = stored_bytes(self._pairs, self._scales, self._zeros, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        scales, zeros = self._scales.float()[..., None], self._zeros.float()[..., None]
        weight = torch.empty(*self._pairs.shape, 2)
        torch.addcmul(zeros - 8.0 * scales, self._pairs & 15, scales, out=weight[..., 0])
        torch.addcmul(zeros - 8.0 * scales, self._pairs >> 4, scales, out=weight[..., 1])
        return F.linear(x, weight.view(len(weight), -1), self._bias)


def _int4(linear: nn.Linear, input_range: ActivationRange | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return int4_per_group(linear.weight, None if input_range is None else input_range.moments)


class Bf16Linear(PackedLayer):
    """Weights and products in bf16; input and output in fp32."""

    def __init__(self, linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        self._weight = linear.weight.to(torch.bfloat16)
        self._bias = bias_of(linear, torch.bfloat16)
        self.packed_bytes = stored_bytes(self._weight, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        return F.linear(x.to(torch.bfloat16), self._weight, self._bias).to(torch.float32)


class FbgemmFp16Linear(PackedLayer):
    """Weights in fp16, products and sums in fp32: FBGEMM widens weights in registers."""

    def __init__(self, linear: nn.Linear, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        bias = bias_of(linear)
        self._packed = packed_fp16(fp16(linear.weight).float(), bias)
        self._out_features = linear.out_features
        self.packed_bytes = 2 * linear.weight.numel() + stored_bytes(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x.reshape(-1, x.shape[-1]), self._packed)
        return product.view(*x.shape[:-1], self._out_features)
