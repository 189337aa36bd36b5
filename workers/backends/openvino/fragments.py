"""One layer with one choice as ONNX nodes that OpenVINO's CPU plugin keeps in the choice's precision.

Integers, scales and zero points come from ``workers.backends.rounding``; nothing is calibrated or rounded again.
"""

from typing import Any

import torch
from torch import nn

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.builder import BFLOAT16, FLOAT, INPUT, UINT4, Builder, Emit, Fragment, LayerToConvert, build
from workers.backends.onnx.geometry import convolution_geometry
from workers.backends.onnx.operators import (
    conv,
    float_conv,
    float_linear,
    float_rows,
    linear,
    smooth_linear,
    static_input,
    static_linear,
    stored_weight,
)
from workers.backends.rounding.weights import INT4_GROUP, affine_per_row, in_pairs, int4_per_group, int8_per_channel


def fragment(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> Fragment:
    """Return the fragment that computes ``module`` with ``choice`` in OpenVINO."""
    return build(LayerToConvert(module=module, choice=choice, input_range=input_range), _EMIT)


def _linear(graph: Builder, layer: LayerToConvert) -> str:
    if layer.choice.precision is Precision.BF16:
        weight = stored_weight(graph, layer, transpose=True)
        return _bf16(graph, "MatMul", weight, layer.bias)
    return linear(graph, layer, _LINEAR)


def _bf16(graph: Builder, op: str, weight: str, bias: torch.Tensor | None, **attributes: Any) -> str:
    """Add a product and its bias in bf16, between casts: OpenVINO keeps the format of operators, and fuses these."""
    product = graph.node(op, [graph.node("Cast", [INPUT], to=BFLOAT16), weight], **attributes)
    if bias is not None:
        bits = bias.to(torch.bfloat16).view(torch.int16)
        product = graph.node("Add", [product, graph.constant("bias", bits, BFLOAT16)])
    return graph.node("Cast", [product], to=FLOAT)


def _int8_weight_only_linear(graph: Builder, layer: LayerToConvert) -> str:
    values, scales = int8_per_channel(layer.weight, torch.bfloat16)
    scale = graph.constant("weight_scale", scales.float()[:, None])
    return _product(graph, graph.node("Mul", [_widened(graph, graph.constant("weight_int8", values)), scale]))


def _int4_weight_only_linear(graph: Builder, layer: LayerToConvert) -> str:
    moments = None if layer.input_range is None else layer.input_range.moments
    values, scales, zeros = int4_per_group(layer.weight, moments)
    outputs, features = values.shape
    shape = (outputs, features // INT4_GROUP, INT4_GROUP)
    weight = graph.packed("weight_int4", in_pairs(values), UINT4, shape)
    # (v - 8) s + z is (v - (8 - z / s)) s.
    rows = _dequantized(graph, weight, scales.float()[..., None], (8.0 - zeros.float() / scales.float())[..., None])
    whole = graph.node("Reshape", [rows, graph.constant("weight_shape", torch.tensor([outputs, features]))])
    return _product(graph, whole)


def _product(graph: Builder, weight: str) -> str:
    """Add the product with a weight of shape ``(out, in)``, in which order OpenVINO takes integers as they are."""
    return graph.node("MatMul", [INPUT, graph.node("Transpose", [weight], perm=[1, 0])])


def _conv(graph: Builder, layer: LayerToConvert) -> str:
    if layer.choice.precision is Precision.BF16:
        bias = None if layer.bias is None else layer.bias.view(-1, *[1] * (layer.weight.dim() - 2))
        return _bf16(graph, "Conv", stored_weight(graph, layer), bias, **convolution_geometry(layer.module))
    return conv(graph, layer, _static_conv if layer.choice.needs_int8_products else float_conv)


def _static_conv(graph: Builder, layer: LayerToConvert) -> str:
    values, scales = int8_per_channel(layer.weight, bits=layer.choice.weight_bits)
    constants = [graph.constant("weight_int8", values), graph.constant("weight_scale", scales)]
    x = graph.node("DequantizeLinear", static_input(graph, layer))
    weight = graph.node("DequantizeLinear", constants, axis=0)
    return graph.node("Conv", [x, weight], **convolution_geometry(layer.module))


def _embedding(graph: Builder, layer: LayerToConvert) -> str:
    if not layer.choice.precision.is_quantized:
        return float_rows(graph, layer)
    bits = layer.choice.precision.bits
    values, *affine = affine_per_row(layer.weight, bits)
    # As in PyTorch's kernel, scales and offsets of 4-bit rows have the precision of fp16.
    scales, offsets = (row.to(torch.float16).float() if bits == 4 else row for row in affine)
    flat = scales == 0.0  # such a row is its offset
    values[flat] = 0
    scales = scales.masked_fill(flat, 1.0)
    if bits == 4:
        weight = graph.packed("weight_int4", in_pairs(values), UINT4, layer.weight.shape)
    else:
        weight = graph.constant("weight_int8", values)
    # Before the lookup, because OpenVINO then dequantizes in the same operator only the rows that are read.
    rows = _dequantized(graph, weight, scales[:, None], -(offsets / scales)[:, None])
    return graph.node("Gather", [rows, INPUT])


def _dequantized(graph: Builder, weight: str, scale: torch.Tensor, zero_point: torch.Tensor) -> str:
    """Return ``(weight - zero_point) * scale``; OpenVINO keeps the integers and does this inside their reader."""
    shifted = graph.node("Sub", [_widened(graph, weight), graph.constant("weight_zero_point", zero_point)])
    return graph.node("Mul", [shifted, graph.constant("weight_scale", scale)])


def _widened(graph: Builder, weight: str) -> str:
    return graph.node("Cast", [weight], to=FLOAT)


_LINEAR: dict[str, Emit] = {
    "fp32": float_linear,
    "int8_static": static_linear,
    "int8_static_smooth": smooth_linear,
    "int8_weight_only": _int8_weight_only_linear,
    "int4_weight_only": _int4_weight_only_linear,
    "int4_weight_only_gptq": _int4_weight_only_linear,
}
_EMIT: dict[type[nn.Module], Emit] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
}
