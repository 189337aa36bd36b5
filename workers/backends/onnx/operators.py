"""Operators that every runtime of ONNX graphs computes alike.

Integers, scales and zero points come from ``workers.backends.rounding``; nothing is calibrated or rounded again.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from workers.backends.onnx.builder import BFLOAT16, FLOAT, INPUT, Builder, Emit, LayerToConvert
from workers.backends.onnx.geometry import convolution_geometry
from workers.backends.rounding.weights import int8_per_channel
from workers.backends.smoothed import multiplied


def linear(graph: Builder, layer: LayerToConvert, products: Mapping[str, Emit]) -> str:
    """Add the product of the layer's choice and the bias; ``products`` are the choices' names and products."""
    product = products[layer.choice.name](graph, layer)
    return product if layer.bias is None else graph.node("Add", [product, graph.constant("bias", layer.bias)])


def float_linear(graph: Builder, layer: LayerToConvert) -> str:
    """Add the product with the weight in the choice's floating-point format; accumulates in fp32."""
    return graph.node("MatMul", [INPUT, _float_weight(graph, layer, transpose=True)])


def static_linear(graph: Builder, layer: LayerToConvert, x: str = INPUT) -> str:
    """Add an int8 product of ``x``, quantized with the calibrated range."""
    values, scales = int8_weight(graph, layer)
    quantized, scale, zero_point = static_input(graph, layer, x)
    x = graph.node("DequantizeLinear", [quantized, scale, zero_point])
    weight = graph.node("DequantizeLinear", [values, scales], axis=1)
    return graph.node("MatMul", [x, weight])


def smooth_linear(graph: Builder, layer: LayerToConvert) -> str:
    """Add the division of the input's channels by their factors, and the int8 product."""
    inner, divided = smoothed(graph, layer)
    return static_linear(graph, inner, divided)


def smoothed(graph: Builder, layer: LayerToConvert) -> tuple[LayerToConvert, str]:
    """Add the division of the input by its factors; return the layer of the divided input, and that input."""
    assert layer.input_range is not None
    assert layer.input_range.smoothing is not None
    assert isinstance(layer.module, nn.Linear)
    factors = torch.tensor(layer.input_range.smoothing.factors)
    divided = graph.node("Mul", [INPUT, graph.constant("smoothing", factors.reciprocal())])
    inner = replace(layer, module=multiplied(layer.module, factors), input_range=layer.input_range.smoothing.range)
    return inner, divided


def conv(graph: Builder, layer: LayerToConvert, convolve: Emit) -> str:
    """Add a convolution and its bias."""
    convolved = convolve(graph, layer)
    if layer.bias is None:
        return convolved
    return graph.node("Add", [convolved, per_channel(graph, layer, "bias", layer.bias)])


def float_conv(graph: Builder, layer: LayerToConvert) -> str:
    """Add a convolution with the weight in the choice's floating-point format; accumulates in fp32."""
    return graph.node("Conv", [INPUT, _float_weight(graph, layer)], **convolution_geometry(layer.module))


def static_input(graph: Builder, layer: LayerToConvert, x: str = INPUT) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the calibrated range."""
    assert layer.input_range is not None
    scale, zero_point = layer.input_range.affine_uint8()
    names = (
        graph.constant("input_scale", np.float32(scale)),
        graph.constant("input_zero_point", np.uint8(zero_point)),
    )
    return graph.node("QuantizeLinear", [x, *names]), *names


def int8_weight(graph: Builder, layer: LayerToConvert) -> tuple[str, str]:
    """Return the weight of a linear layer, shape ``(in, out)``, and its scales, shape ``(out,)``."""
    values, scales = int8_per_channel(layer.weight, bits=layer.choice.weight_bits)
    weight = graph.constant("weight_int8", values.T)
    return weight, graph.constant("weight_scale", scales)


def float_rows(graph: Builder, layer: LayerToConvert) -> str:
    """Add the lookup of an embedding whose weight is in the choice's floating-point format."""
    rows = graph.node("Gather", [stored_weight(graph, layer), INPUT])
    return rows if layer.choice.precision.bits == 32 else graph.node("Cast", [rows], to=FLOAT)


def _float_weight(graph: Builder, layer: LayerToConvert, *, transpose: bool = False) -> str:
    stored = stored_weight(graph, layer, transpose=transpose)
    # ONNX Runtime's CPU kernels multiply in fp32; the cast constant is widened when the graph is loaded.
    return stored if layer.choice.precision.bits == 32 else graph.node("Cast", [stored], to=FLOAT)


def stored_weight(graph: Builder, layer: LayerToConvert, *, transpose: bool = False) -> str:
    """Return the weight in the choice's own floating-point format."""
    weight = layer.weight
    weight = weight.T if transpose else weight
    name = "weight"
    match layer.choice.name:
        case "bf16":
            bits = weight.to(torch.bfloat16).contiguous().view(torch.int16)
            return graph.constant(name, bits, BFLOAT16)
        case "fp16":
            return graph.constant(name, weight.to(torch.float16))
    return graph.constant(name, weight)


def per_channel(graph: Builder, layer: LayerToConvert, name: str, value: torch.Tensor) -> str:
    """Return a constant with one value per output channel of a convolution."""
    return graph.constant(name, value.view(-1, *[1] * (layer.weight.dim() - 2)))
