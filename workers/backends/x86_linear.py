"""Linear layers on x86 CPUs: bf16, W8A8 static, dynamic and by token, int8 and int4 weight-only.

W8A8 runs oneDNN's int8 matrix product with fp32 output. It was measured against PyTorch's older
``quantized.linear_dynamic`` and ``linear_with_input_q_dq_qweight_dq_output_fp32``: from 32 rows on it
takes half to two thirds of their time, at one row it costs some 20 microseconds more. Their packed
weights differ, and holding both would double the memory.
"""

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.quantization_map import ActivationRange
from workers.backends.activation_quantization import ZERO_OF_ROWS, affine_of, rows_to_uint8, to_uint8
from workers.backends.packed import PackedLayer, bias_of, stored_bytes
from workers.backends.weight_quantization import INT4_GROUP, int4_per_group, int8_per_channel

#: Up to so many rows the weight-only int8 kernel reads each weight once from memory, which is what
#: decoding one token waits for; beyond, bf16 products on weights widened on the fly are faster.
_FEW_ROWS = 8
#: That kernel reads input features in blocks of 16 and runs past the end of others (PyTorch 2.13).
_FEATURE_BLOCK = 16


class Bf16Linear(PackedLayer):
    """Weights and products in bf16; input and output in fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._weight = linear.weight.to(torch.bfloat16)
        self._bias = bias_of(linear, torch.bfloat16)
        self.packed_bytes = stored_bytes(self._weight, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        return F.linear(x.to(torch.bfloat16), self._weight, self._bias).to(torch.float32)


class Int8Linear(PackedLayer):
    """W8A8: per-channel symmetric weights; asymmetric uint8 input, per tensor, static or dynamic."""

    def __init__(self, linear: nn.Linear, input_range: ActivationRange | None) -> None:
        super().__init__(linear)
        values, self._scales = int8_per_channel(linear.weight)
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self._zero_points = torch.zeros(len(self._scales), dtype=torch.int32)
        self._bias = bias_of(linear)
        self._affine = None if input_range is None else input_range.affine_uint8()
        self._out_features = linear.out_features
        self.packed_bytes = stored_bytes(self._packed, self._scales, self._zero_points, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        scale, zero_point = self._affine or affine_of(x)
        rows = to_uint8(x.reshape(-1, x.shape[-1]), scale, zero_point)
        return self._product(rows, scale, zero_point, self._bias).view(*x.shape[:-1], self._out_features)

    def _product(self, rows: torch.Tensor, scale: float, zero_point: int, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the product of uint8 rows with the weights in fp32, shape ``(rows, out)``."""
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, scale, zero_point, self._packed, self._scales, self._zero_points, bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product


class Int8PerTokenLinear(Int8Linear):
    """W8A8 dynamic with a scale for each row of the input: the same product, scaled afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows, scales = rows_to_uint8(x.reshape(-1, x.shape[-1]))
        product = self._product(rows, 1.0, ZERO_OF_ROWS, None).mul_(scales)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], self._out_features)


class Int8WeightOnlyLinear(PackedLayer):
    """Per-channel symmetric int8 weights, bf16 products, no activation quantization."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._values, self._scales = int8_per_channel(linear.weight, torch.bfloat16)
        self._few_rows = 0 if linear.in_features % _FEATURE_BLOCK else _FEW_ROWS
        self._bias = bias_of(linear)
        self.packed_bytes = stored_bytes(self._values, self._scales, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()  # the kernel reads it so
        if len(rows) <= self._few_rows:
            product = torch._weight_int8pack_mm(rows, self._values, self._scales).to(torch.float32)
        else:
            product = F.linear(rows, self._values.to(torch.bfloat16)).to(torch.float32).mul_(self._scales)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], len(self._scales))


class Int4WeightOnlyLinear(PackedLayer):
    """Per-group asymmetric int4 weights, bf16 products, no activation quantization.

    The packed layout depends on the processor and has no kernel that unpacks it, so many rows take
    the same kernel as one; it is made for few.
    """

    def __init__(self, linear: nn.Linear, input_range: ActivationRange | None = None) -> None:
        """Take the layer, and the range with the second moments of its input if GPTQ is to round its weights."""
        super().__init__(linear)
        values, scales, zeros = int4_per_group(linear.weight, None if input_range is None else input_range.moments)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
        # The kernel wants (groups, out, 2).
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous()
        self._bias = bias_of(linear)
        self._out_features = linear.out_features
        self.packed_bytes = stored_bytes(self._packed, self._scales_and_zeros, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()  # the kernel reads it so
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self._packed, INT4_GROUP, self._scales_and_zeros
        )
        product = product.to(torch.float32)
        if self._bias is not None:
            product += self._bias
        return product.view(*x.shape[:-1], self._out_features)
