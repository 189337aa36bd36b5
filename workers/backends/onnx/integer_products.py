"""Int8 products in the forms for which ONNX Runtime's CPU provider has fast kernels.

``ConvInteger`` has none: on an AVX-512 processor with VNNI it took 4 to 50 times as long as a convolution in fp32. A
convolution is therefore a product over channels if it has one group, and is left for ONNX Runtime to fuse into
``QLinearConv`` if its output is quantized anyway.
"""

import itertools
import math

import numpy as np
import torch

from workers.backends.onnx.builder import MICROSOFT, Builder, LayerToConvert
from workers.backends.onnx.geometry import convolution_geometry
from workers.backends.onnx.operators import static_input
from workers.backends.rounding.weights import int8_per_channel

#: Index behind every last element.
_END = (1 << 63) - 1
#: Largest bias in steps of the product; sums with it stay within 32 bits.
_LARGEST_BIAS = 1 << 30

#: Names of the quantized input, its scale and its zero point.
Quantized = tuple[str, str, str]


def product(graph: Builder, layer: LayerToConvert, x: Quantized, weight: str, scales: str) -> str:
    """Add the product of ``x``, shape ``(..., in)``, and ``weight``, shape ``(in, out)``, and the layer's bias.

    Written as ``DequantizeLinear`` and ``MatMul``, ONNX Runtime would add the bias elsewhere, and compute inputs of two
    dimensions in fp32: it makes ``Gemm`` of the product and the bias before it looks for integers.
    """
    values, scale, zero_point = x
    inputs = [values, weight, scale, scales, zero_point]
    if layer.bias is not None:
        inputs += ["", graph.constant("bias", layer.bias)]
    return graph.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)


def conv(graph: Builder, layer: LayerToConvert, x: Quantized) -> str:
    """Add a convolution of ``x`` and its bias."""
    if layer.module.groups != 1:
        return _in_groups(graph, layer, x)
    values, scales = int8_per_channel(layer.weight, bits=layer.choice.weight_bits)
    spatial = values.dim() - 2
    last = graph.node("Transpose", [x[0]], perm=[0, *range(2, 2 + spatial), 1])
    read = _windows(graph, layer, last, x[2])
    weight = graph.constant("weight_int8", values.permute(*range(2, 2 + spatial), 1, 0).reshape(-1, len(values)))
    convolved = product(graph, layer, (read, x[1], x[2]), weight, graph.constant("weight_scale", scales))
    return graph.node("Transpose", [convolved], perm=[0, 1 + spatial, *range(1, 1 + spatial)])


def _in_groups(graph: Builder, layer: LayerToConvert, x: Quantized) -> str:
    """Add a convolution in groups, in fp32 but of the integers: nothing computes its integers faster."""
    inputs = [graph.node("DequantizeLinear", x), graph.node("DequantizeLinear", _weight(graph, layer), axis=0)]
    if layer.bias is not None:
        inputs.append(graph.constant("bias", layer.bias))
    return graph.node("Conv", inputs, **convolution_geometry(layer.module))


def _windows(graph: Builder, layer: LayerToConvert, x: str, zero_point: str) -> str:
    """Return what each output reads, shape ``(batch, ..., kernel positions x channels)``; ``x`` has channels last."""
    geometry = convolution_geometry(layer.module)
    spatial, strides, dilations = len(geometry["strides"]), geometry["strides"], geometry["dilations"]
    begins, ends = geometry["pads"][:spatial], geometry["pads"][spatial:]
    if any(geometry["pads"]):
        x = graph.node("Pad", [x, graph.integers(0, *begins, 0, 0, *ends, 0), zero_point])
    kernel = geometry["kernel_shape"]
    if math.prod(kernel) * math.prod(strides) == 1:
        return x
    axes, steps = graph.integers(*range(1, 1 + spatial)), graph.integers(*strides)
    parts = []
    for position in itertools.product(*map(range, kernel)):
        starts = [index * dilation for index, dilation in zip(position, dilations, strict=True)]
        # From the end, because sizes may vary; the window of the last position ends where the input does.
        behind = [(size - 1 - index) * d for size, index, d in zip(kernel, position, dilations, strict=True)]
        stops = [-distance if distance else _END for distance in behind]
        parts.append(graph.node("Slice", [x, graph.integers(*starts), graph.integers(*stops), axes, steps]))
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=-1)


def requantized_conv(graph: Builder, layer: LayerToConvert) -> str:
    """Add a static convolution and its bias as ONNX Runtime fuses them with a quantization of the output."""
    quantized, scale, zero_point = static_input(graph, layer)
    weight, weight_scale = _weight(graph, layer)
    inputs = [
        graph.node("DequantizeLinear", [quantized, scale, zero_point]),
        graph.node("DequantizeLinear", [weight, weight_scale], axis=0),
    ]
    if layer.bias is not None:
        _, scales = _weight_for_bias(layer)
        steps = (layer.bias.double() / (_input_scale(layer) * scales.double())).round()
        bias = graph.constant("bias", steps.to(torch.int32))
        inputs.append(graph.node("DequantizeLinear", [bias, graph.node("Mul", [scale, weight_scale])], axis=0))
    return graph.node("Conv", inputs, **convolution_geometry(layer.module))


def _weight(graph: Builder, layer: LayerToConvert) -> tuple[str, str]:
    """Return the weight of a convolution, shape ``(out, in, ...)``, and its scales, shape ``(out,)``."""
    values, scales = _weight_for_bias(layer)
    return graph.constant("weight_int8", values), graph.constant("weight_scale", scales)


def _weight_for_bias(layer: LayerToConvert) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 weights and scales with which the bias of a static convolution fits 32-bit integers.

    Where weights are so small beside the bias that it would not, their scale grows. Outputs then change by about a
    millionth of the bias. ONNX Runtime rounds biases itself, too, and does not look whether they fit.
    """
    values, scales = int8_per_channel(layer.weight, bits=layer.choice.weight_bits)
    if layer.bias is None or not layer.choice.needs_calibration:
        return values, scales
    needed = (layer.bias.abs().double() / (_LARGEST_BIAS * _input_scale(layer))).float()
    larger = torch.maximum(scales, needed)
    shrunk = (scales / larger).view(-1, *[1] * (values.dim() - 1))
    return (values * shrunk).round().to(torch.int8), larger


def _input_scale(layer: LayerToConvert) -> float:
    """Return the calibrated scale as the graph has it."""
    assert layer.input_range is not None
    return float(np.float32(layer.input_range.affine_uint8()[0]))
