"""One layer with one choice as ONNX nodes, which compute the same as the CPU backend's kernels."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx import integer_products
from workers.backends.onnx.builder import FLOAT, INPUT, MICROSOFT, Builder, Emit, Fragment, LayerToConvert, build, built
from workers.backends.onnx.operators import (
    conv,
    float_conv,
    float_linear,
    float_rows,
    int8_weight,
    linear,
    smoothed,
    static_input,
)
from workers.backends.rounding.activations import ZERO_OF_ROWS
from workers.backends.rounding.weights import (
    INT4_GROUP,
    INT8_LARGEST,
    affine_per_row,
    in_pairs,
    int4_per_group,
    int8_per_channel,
)

#: Accuracy level at which ``MatMulNBits`` multiplies in fp32; its faster levels would quantize activations.
_FP32_PRODUCTS = 1


def fragment(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> Fragment:
    """Return the fragment that computes ``module`` with ``choice`` in ONNX Runtime."""
    layer = LayerToConvert(module=module, choice=choice, input_range=input_range)
    convolves = isinstance(module, nn.Conv1d | nn.Conv2d) and choice.needs_calibration
    return replace(
        build(layer, _EMIT),
        quantizes=_quantizes(layer),
        requantized=built(layer, integer_products.requantized_conv) if convolves else None,
    )


def _quantizes(layer: LayerToConvert) -> tuple[float, int] | None:
    """Return the calibrated scale and zero point with which a layer quantizes its input itself, if it does."""
    if layer.choice.name != "int8_static":
        return None  # a smoothed layer divides its input before
    assert layer.input_range is not None
    return layer.input_range.affine_uint8()


def _linear(graph: Builder, layer: LayerToConvert) -> str:
    match layer.choice.name:
        case "int8_static":
            return _static_linear(graph, layer, INPUT)
        case "int8_static_smooth":
            inner, divided = smoothed(graph, layer)
            return _static_linear(graph, inner, divided)
        case "int8_weight_only":
            return _int8_weight_only_linear(graph, layer)
    return linear(graph, layer, _LINEAR)


def _static_linear(graph: Builder, layer: LayerToConvert, x: str) -> str:
    values, scales = int8_weight(graph, layer)
    return integer_products.product(graph, layer, static_input(graph, layer, x), values, scales)


def _dynamic_linear(graph: Builder, layer: LayerToConvert) -> str:
    values, scales = int8_weight(graph, layer)
    quantized, scale, zero_point = _dynamic_input(graph, layer)
    return _scaled(graph, graph.node("MatMulInteger", [quantized, values, zero_point]), scale, scales)


def _per_token_linear(graph: Builder, layer: LayerToConvert) -> str:
    values, scales = int8_weight(graph, layer)
    one = graph.constant("one", np.float32(1.0))
    quantized, scale, zero_point = _per_token_input(graph, one)
    # ONNX Runtime fuses the other variants into this kernel too; it takes a single scale for its input.
    product = graph.node("MatMulIntegerToFloat", [quantized, values, one, scales, zero_point], domain=MICROSOFT)
    return graph.node("Mul", [product, scale])


def _int8_weight_only_linear(graph: Builder, layer: LayerToConvert) -> str:
    values, scales = int8_per_channel(layer.weight, torch.bfloat16)
    outputs, features = values.shape
    stored = [graph.constant("weight_int8", values), graph.constant("weight_scale", scales.float())]
    # ONNX Runtime has no fast fp32 product with 8-bit weights, and would fuse this with MatMul into one that quantizes
    # activations; Gemm takes rows only.
    inputs = [graph.node("Reshape", [INPUT, graph.integers(-1, features)])]
    inputs.append(graph.node("DequantizeLinear", stored, axis=0))
    if layer.bias is not None:
        inputs.append(graph.constant("bias", layer.bias))
    rows = graph.node("Gemm", inputs, transB=1)
    leading = graph.node("Shape", [INPUT], end=-1)
    return graph.node("Reshape", [rows, graph.node("Concat", [leading, graph.integers(outputs)], axis=0)])


def _int4_weight_only_linear(graph: Builder, layer: LayerToConvert) -> str:
    moments = None if layer.input_range is None else layer.input_range.moments
    values, scales, zeros = int4_per_group(layer.weight, moments)
    outputs, features = values.shape
    weight = graph.constant("weight_int4", in_pairs(values.view(outputs, features // INT4_GROUP, INT4_GROUP)))
    scale = graph.constant("weight_scale", scales.float())
    # (v - 8) s + z is (v - (8 - z / s)) s.
    zero_point = graph.constant("weight_zero_point", 8.0 - zeros.float() / scales.float())
    return graph.node(
        "MatMulNBits", [INPUT, weight, scale, zero_point], domain=MICROSOFT,
        K=features, N=outputs, bits=4, block_size=INT4_GROUP, accuracy_level=_FP32_PRODUCTS,
    )  # fmt: skip


def _conv(graph: Builder, layer: LayerToConvert) -> str:
    if not layer.choice.needs_int8_products:
        return conv(graph, layer, float_conv)
    quantize = static_input if layer.choice.needs_calibration else _dynamic_input
    return integer_products.conv(graph, layer, quantize(graph, layer))


def _embedding(graph: Builder, layer: LayerToConvert) -> str:
    if layer.choice.precision.is_quantized:
        return _integer_rows(graph, layer, layer.choice.precision.bits)
    return float_rows(graph, layer)


def _integer_rows(graph: Builder, layer: LayerToConvert, bits: int) -> str:
    weight = layer.weight
    integers, scales, offsets = affine_per_row(weight, bits)
    values = in_pairs(integers) if bits == 4 else integers
    rows = graph.node("Gather", [graph.constant(f"weight_int{bits}", values), INPUT])
    rows = _unpacked(graph, rows) if bits == 4 else rows
    # As in PyTorch's kernel, scales and offsets of 4-bit rows are fp16.
    stored = [row[:, None].to(torch.float16 if bits == 4 else torch.float32) for row in (scales, offsets)]
    scale, offset = (
        graph.node("Gather", [graph.constant(f"weight_{name}", row), INPUT])
        for name, row in zip(("scale", "offset"), stored, strict=True)
    )
    if bits == 4:
        scale, offset = (graph.node("Cast", [name], to=FLOAT) for name in (scale, offset))
    scaled = graph.node("Mul", [graph.node("Cast", [rows], to=FLOAT), scale])
    return graph.node("Add", [scaled, offset])


def _unpacked(graph: Builder, rows: str) -> str:
    """Return the unpacked 4-bit integers, twice as many features; the lower half of each byte comes first."""
    last = graph.constant("last", np.array([-1]))
    low = graph.node("BitwiseAnd", [rows, graph.constant("low_half", np.uint8(15))])
    high = graph.node("BitShift", [rows, graph.constant("half", np.uint8(4))], direction="RIGHT")
    pairs = graph.node("Concat", [graph.node("Unsqueeze", [half, last]) for half in (low, high)], axis=-1)
    shape = graph.node("Concat", [graph.node("Shape", [rows], end=-1), last], axis=0)
    return graph.node("Reshape", [pairs, shape])


def _dynamic_input(graph: Builder, layer: LayerToConvert) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the input's own range."""
    quantized = graph.node("DynamicQuantizeLinear", [INPUT], outputs=3)
    node = graph.nodes[-1]
    return quantized, node.output[1], node.output[2]


def _per_token_input(graph: Builder, one: str) -> tuple[str, str, str]:
    """Return the quantized input, its per-row scales and the shared zero point."""
    last = graph.constant("last", np.array([-1]))
    ends = [graph.node("ReduceMax", [INPUT, last], keepdims=1), graph.node("ReduceMin", [INPUT, last], keepdims=1)]
    largest = graph.node("Max", [graph.node("Abs", [end]) for end in ends])
    scale = graph.node("Div", [largest, graph.constant("largest", np.float32(INT8_LARGEST))])
    scale = graph.node("Max", [scale, graph.constant("least", np.finfo(np.float32).tiny)])
    zero_point = graph.constant("input_zero_point", np.uint8(ZERO_OF_ROWS))
    return graph.node("QuantizeLinear", [graph.node("Div", [INPUT, scale]), one, zero_point]), scale, zero_point


def _scaled(graph: Builder, product: str, input_scale: str, weight_scale: str) -> str:
    # ONNX Runtime fuses these operations into one kernel only in this order.
    scale = graph.node("Mul", [input_scale, weight_scale])
    return graph.node("Mul", [graph.node("Cast", [product], to=FLOAT), scale])


_LINEAR: dict[str, Emit] = {
    "fp32": float_linear,
    "bf16": float_linear,
    "fp16": float_linear,
    "int8_dynamic": _dynamic_linear,
    "int8_dynamic_per_token": _per_token_linear,
    "int4_weight_only": _int4_weight_only_linear,
    "int4_weight_only_gptq": _int4_weight_only_linear,
}
_EMIT: dict[type[nn.Module], Emit] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
}
