"""Layers on torchao's tensors and PyTorch's own kernels, for GPUs, and for CPUs in tests.

Activations are quantized as in GPU runtimes: symmetrically, with one scale per row (token) if it is computed at run
time, and one per tensor if it was calibrated.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchao.float8.inference import Float8MMConfig
from torchao.quantization import Float8Tensor, Int8Tensor, PerRow, PerTensor
from torchao.quantization.quantize_.common import KernelPreference
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs, QuantizeTensorToInt8Kwargs

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer, bias_of, stored_bytes
from workers.backends.rounding.weights import (
    FP8_LARGEST,
    INT4_GROUP,
    INT8_LARGEST,
    fp8_per_channel,
    fp8_per_tensor,
    int4_per_group,
    int8_per_channel,
)

#: cuBLAS multiplies at least 17 rows of int8; fewer rows are padded to a whole tile.
_FEW_ROWS, _TILE = 16, 32
#: Numbers of 16-feature tiles that tinygemm can pack together; more tiles allow wider loads.
_INNER_TILES, _TILE_FEATURES = (8, 4, 2), 16

#: Returns an equivalent function, possibly compiled; all layers with one key share it.
Compile = Callable[..., Callable[..., torch.Tensor]]


def uncompiled(function: Callable[..., torch.Tensor], *key: object) -> Callable[..., torch.Tensor]:
    """Return ``function`` unchanged. See ``Compile``."""
    return function


def regional(compiler: str) -> Compile:
    """Return a function that compiles a layer's product with ``torch.compile``, once per key.

    Every key has its own guards and limits: a call checks only the few variants of the layer's own shape and choice,
    and no number of keys makes layers fall back to uncompiled code.
    """
    torch._dynamo.config.accumulated_recompile_limit = 1 << 16
    # The autograd cache rejects torchao tensors (PyTorch 2.13) with a traceback for each; the inductor cache works.
    torch._functorch.config.enable_autograd_cache = False

    options: dict[str, Any] = {  # untyped, because PyTorch's stubs lack some of them
        "fullgraph": True,
        "backend": compiler,
        "isolate_recompiles": True,
        # Zero, one, few and many rows, before and after their number is known to vary, in two no-gradient modes.
        "recompile_limit": 32,
    }

    @functools.cache
    def compiled(function: Callable[..., torch.Tensor], *key: object) -> Callable[..., torch.Tensor]:
        return torch.compile(function, **options)

    return compiled


class HalfLayer(PackedLayer):
    """Weights and products in bf16 or fp16; input, unless it is indices, and output in fp32."""

    def __init__(self, original: nn.Module, dtype: torch.dtype, device: str) -> None:
        super().__init__(original)
        self._half = copy.deepcopy(original).to(device, dtype)
        self._dtype = dtype
        self.packed_bytes = stored_bytes(*self._half.parameters())

    def forward(self, x: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """Return the original's output; ``output_size`` is for transposed convolutions."""
        size = () if output_size is None else (output_size,)
        outputs: torch.Tensor = self._half(x.to(self._dtype) if x.is_floating_point() else x, *size)
        return outputs.to(torch.float32)


class QuantizedLinear(PackedLayer):
    """int8 and fp8: the weight is a torchao tensor, which implements its own product."""

    def __init__(
        self,
        linear: nn.Linear,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        device: str,
        compile_: Compile,
    ) -> None:
        super().__init__(linear)
        self._weight = quantized_weight(linear.weight.detach().to(device), choice, input_range)
        # Integer products are scaled in fp32; tensor cores return the others in bf16.
        self._dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
        bias = bias_of(linear, self._dtype)
        self._bias = None if bias is None else bias.to(device)
        self._input_scale = None
        if choice.precision is Precision.FP8 and input_range is not None:
            # torchao 0.18 has no fp8 tensor with a static scale.
            self._input_scale = torch.full((1, 1), input_range.symmetric_scale(FP8_LARGEST), device=device)
        self._multiply = compile_(multiply, tuple(linear.weight.shape), choice.name, bias is None)
        self.packed_bytes = tensor_bytes(self._weight) + stored_bytes(self._bias, self._input_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        product = self._multiply(rows, self._weight, self._bias, self._input_scale, self._dtype)
        return product.view(*x.shape[:-1], self._weight.shape[0])


class Int4Linear(PackedLayer):
    """Per-group asymmetric int4 weights and bf16 products, computed by tinygemm.

    This avoids torchao's tensor, which pads weights to 1,024 input features: about 2.7 times those of a layer with 384.
    """

    def __init__(self, linear: nn.Linear, input_range: ActivationRange | None, device: str, compile_: Compile) -> None:
        super().__init__(linear)
        moments = None if input_range is None else input_range.moments
        values, scales, zeros = int4_per_group(linear.weight.detach().to(device), moments)
        self._packed = _tinygemm_layout(values)
        # The kernel requires shape (groups, out, 2).
        self._scales_and_zeros = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous()
        bias = bias_of(linear, torch.bfloat16)
        self._bias = None if bias is None else bias.to(device)
        self._out_features = linear.out_features
        self._multiply = compile_(multiply_int4, tuple(linear.weight.shape), bias is None)
        self.packed_bytes = stored_bytes(self._packed, self._scales_and_zeros, self._bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b``; (..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        product = self._multiply(rows, self._packed, self._scales_and_zeros, self._bias)
        return product.view(*x.shape[:-1], self._out_features)


def multiply(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the fp32 product of ``rows``, shape ``(rows, in)``, with a torchao tensor that takes ``dtype`` inputs."""
    count = len(rows)
    rows = rows.to(dtype)
    if dtype == torch.float32 and count <= _FEW_ROWS:
        rows = F.pad(rows, (0, 0, 0, _TILE - count))
    if input_scale is not None:
        rows = _fp8(rows, input_scale)
    return F.linear(rows, weight, bias)[:count].to(torch.float32)


def multiply_int4(
    rows: torch.Tensor, packed: torch.Tensor, scales_and_zeros: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the fp32 product of ``rows``, shape ``(rows, in)``, with packed int4 weights."""
    if not len(rows):  # the kernel cannot run without rows
        return rows.new_zeros(0, scales_and_zeros.shape[1])
    on_cpu = rows.device.type == "cpu"
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu if on_cpu else torch.ops.aten._weight_int4pack_mm
    product: torch.Tensor = kernel(rows.to(torch.bfloat16), packed, INT4_GROUP, scales_and_zeros)
    return (product if bias is None else product + bias).to(torch.float32)


def quantized_weight(weight: torch.Tensor, choice: LayerChoice, input_range: ActivationRange | None) -> torch.Tensor:
    """Return the torchao tensor of an int8 or fp8 choice; ``weight`` has shape ``(out, in)``."""
    if choice.precision is Precision.FP8:
        return _fp8_weight(weight, choice)
    scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
    values, scales = int8_per_channel(weight, scale_dtype, bits=choice.weight_bits)
    arguments: dict[str, Any] = {}
    if choice.needs_int8_products:
        granularity = PerRow() if input_range is None else PerTensor()
        arguments["act_quant_kwargs"] = QuantizeTensorToInt8Kwargs(granularity=granularity)
    if input_range is not None:
        arguments["act_quant_scale"] = torch.full(
            (1, 1), input_range.symmetric_scale(INT8_LARGEST), device=weight.device
        )
    # Type of the tensor's inputs and outputs.
    dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
    tensor: torch.Tensor = Int8Tensor(values, scales.unsqueeze(1), [1, weight.shape[1]], dtype, **arguments)
    return tensor


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Return the total bytes of the parts of a torchao tensor."""
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return stored_bytes(*(getattr(tensor, name) for name in names))


def _fp8_weight(weight: torch.Tensor, choice: LayerChoice) -> torch.Tensor:
    # Per-row scales of the weights require per-row scales of the input, which a static range lacks.
    by_row = choice.name != "fp8_static"
    values, scales = fp8_per_channel(weight) if by_row else fp8_per_tensor(weight)
    arguments: dict[str, Any] = {}
    if choice.name == "fp8_dynamic":
        arguments["act_quant_kwargs"] = QuantizeTensorToFloat8Kwargs(
            granularity=PerRow(), kernel_preference=KernelPreference.TORCH
        )
    tensor: torch.Tensor = Float8Tensor(
        values,
        scales,
        block_size=[1 if by_row else weight.shape[0], weight.shape[1]],
        mm_config=Float8MMConfig(use_fast_accum=True),
        # Other preferences depend on which libraries happen to be installed.
        kernel_preference=KernelPreference.TORCH,
        dtype=torch.bfloat16,
        **arguments,
    )
    return tensor


def _fp8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return ``rows`` in fp8 with a single scale."""
    values = (rows.to(torch.float32) / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    tensor: torch.Tensor = Float8Tensor(values, scale, block_size=list(rows.shape), dtype=rows.dtype)
    return tensor


def _tinygemm_layout(values: torch.Tensor) -> torch.Tensor:
    """Return integers in [0, 15], shape ``(out, in)``, in the packed layout of the device's kernel."""
    packed: torch.Tensor
    if values.device.type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    else:
        pairs = (values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8)
        tiles = values.shape[1] // _TILE_FEATURES
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, next(n for n in _INNER_TILES if tiles % n == 0))
    return packed
