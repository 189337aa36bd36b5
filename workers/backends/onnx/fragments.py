"""One layer with one choice as ONNX nodes, which compute the same as the CPU backend's kernels.

Integers, scales and zero points come from ``workers.backends.rounding``; nothing is calibrated or rounded again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.geometry import convolution_geometry
from workers.backends.onnx.layer_bytes import INT8_BLOCK
from workers.backends.rounding.activations import ZERO_OF_ROWS
from workers.backends.rounding.weights import INT4_GROUP, INT8_LARGEST, affine_per_row, int4_per_group, int8_per_channel
from workers.backends.smoothed import multiplied

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Accuracy level at which ``MatMulNBits`` multiplies in fp32; its faster levels would quantize activations.
_FP32_PRODUCTS = 1


#: Name under which nodes read the layer's input before they are placed.
_INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One layer with one choice: nodes and constants with local names, to be placed at each call of the layer."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    #: Local name of the layer's output.
    output: str

    @property
    def nbytes(self) -> int:
        """Bytes of the constants."""
        return sum(len(constant.raw_data) for constant in self.constants.values())

    def place(self, *, layer: str, call: str, reads: str, writes: str) -> list[onnx.NodeProto]:
        """Return the nodes for one call of the layer.

        Args:
            layer: prefix of the constants' names; all calls share the constants.
            call: prefix of the nodes' names; unique in the graph.
            reads: name of the layer's input value.
            writes: name of the layer's output value.
        """
        names = {_INPUT: reads, self.output: writes} | {name: f"{layer}.{name}" for name in self.constants}
        placed = []
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{call}/{node.name}"
            copy.input[:] = [names.get(name, f"{call}/{name}") for name in node.input]
            copy.output[:] = [names.get(name, f"{call}/{name}") for name in node.output]
            placed.append(copy)
        return placed

    def placed_constants(self, layer: str) -> Iterator[onnx.TensorProto]:
        """Yield the constants under the names used by the placed nodes."""
        for name, constant in self.constants.items():
            copy = onnx.TensorProto()
            copy.CopyFrom(constant)
            copy.name = f"{layer}.{name}"
            yield copy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """The layer to convert."""

    module: nn.Module
    choice: LayerChoice
    #: Calibrated input range, for choices that need calibration.
    input_range: ActivationRange | None


def fragment(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> Fragment:
    """Return the fragment that computes ``module`` with ``choice``."""
    graph = _Builder()
    with torch.no_grad():
        emit = next(emit for kind, emit in _EMIT.items() if isinstance(module, kind))
        output = emit(graph, _Layer(module=module, choice=choice, input_range=input_range))
    return Fragment(nodes=tuple(graph.nodes), constants=graph.constants, output=output)


class _Builder:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its first output; output names end in their number."""
        name = f"{op}_{len(self.nodes)}"
        results = [f"{name}:{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, results, name=name, domain=domain, **attributes))
        return results[0]

    def constant(
        self, name: str, value: torch.Tensor | npt.NDArray[Any] | np.generic, data_type: int | None = None
    ) -> str:
        """Add a constant unless it exists, and return its name; ``data_type`` is for types that numpy lacks."""
        if name not in self.constants:
            array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            constant = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            constant.data_type = data_type or constant.data_type
            self.constants[name] = constant
        return name


def _linear(graph: _Builder, layer: _Layer) -> str:
    product = _LINEAR[layer.choice.name](graph, layer)
    if layer.module.bias is None:
        return product
    return graph.node("Add", [product, graph.constant("bias", _tensor(layer.module.bias))])


def _float_linear(graph: _Builder, layer: _Layer) -> str:
    return graph.node("MatMul", [_INPUT, _float_weight(graph, layer, transpose=True)])


def _static_linear(graph: _Builder, layer: _Layer, x: str = _INPUT) -> str:
    values, scales = _int8_weight(graph, layer)
    quantized, scale, zero_point = _static_input(graph, layer, x)
    x = graph.node("DequantizeLinear", [quantized, scale, zero_point])
    weight = graph.node("DequantizeLinear", [values, scales], axis=1)
    return graph.node("MatMul", [x, weight])


def _smooth_linear(graph: _Builder, layer: _Layer) -> str:
    assert layer.input_range is not None
    assert layer.input_range.smoothing is not None
    assert isinstance(layer.module, nn.Linear)
    factors = torch.tensor(layer.input_range.smoothing.factors)
    divided = graph.node("Mul", [_INPUT, graph.constant("smoothing", factors.reciprocal())])
    inner = replace(layer, module=multiplied(layer.module, factors), input_range=layer.input_range.smoothing.range)
    return _static_linear(graph, inner, divided)


def _dynamic_linear(graph: _Builder, layer: _Layer) -> str:
    values, scales = _int8_weight(graph, layer)
    quantized, scale, zero_point = _dynamic_input(graph, layer)
    return _scaled(graph, graph.node("MatMulInteger", [quantized, values, zero_point]), scale, scales)


def _per_token_linear(graph: _Builder, layer: _Layer) -> str:
    values, scales = _int8_weight(graph, layer)
    one = graph.constant("one", np.float32(1.0))
    quantized, scale, zero_point = _per_token_input(graph, one)
    # ONNX Runtime fuses the other variants into this kernel too; it takes a single scale for its input.
    product = graph.node("MatMulIntegerToFloat", [quantized, values, one, scales, zero_point], domain=MICROSOFT)
    return graph.node("Mul", [product, scale])


def _int8_weight_only_linear(graph: _Builder, layer: _Layer) -> str:
    values, scales = int8_per_channel(_tensor(layer.module.weight), torch.bfloat16)
    outputs, features = values.shape
    blocks = math.ceil(features / INT8_BLOCK)
    packed = np.full((outputs, blocks * INT8_BLOCK), 128, dtype=np.uint8)
    packed[:, :features] = values.numpy().astype(np.int16) + 128
    weight = graph.constant("weight_int8", packed.reshape(outputs, blocks, INT8_BLOCK))
    scale = graph.constant("weight_scale", scales.float()[:, None].expand(outputs, blocks))
    return _n_bits(graph, layer, [weight, scale], 8, INT8_BLOCK)


def _int4_weight_only_linear(graph: _Builder, layer: _Layer) -> str:
    moments = None if layer.input_range is None else layer.input_range.moments
    values, scales, zeros = int4_per_group(_tensor(layer.module.weight), moments)
    outputs, features = values.shape
    pairs = values.to(torch.uint8).view(outputs, features // INT4_GROUP, INT4_GROUP // 2, 2)
    weight = graph.constant("weight_int4", pairs[..., 0] | (pairs[..., 1] << 4))
    scale = graph.constant("weight_scale", scales.float())
    # (v - 8) s + z is (v - (8 - z / s)) s.
    zero_point = graph.constant("weight_zero_point", 8.0 - zeros.float() / scales.float())
    return _n_bits(graph, layer, [weight, scale, zero_point], 4, INT4_GROUP)


def _n_bits(graph: _Builder, layer: _Layer, weight: Sequence[str], bits: int, block: int) -> str:
    outputs, features = _tensor(layer.module.weight).shape
    return graph.node(
        "MatMulNBits", [_INPUT, *weight], domain=MICROSOFT,
        K=features, N=outputs, bits=bits, block_size=block, accuracy_level=_FP32_PRODUCTS,
    )  # fmt: skip


def _conv(graph: _Builder, layer: _Layer) -> str:
    convolved = (_int8_conv if layer.choice.needs_int8_products else _float_conv)(graph, layer)
    if layer.module.bias is None:
        return convolved
    return graph.node("Add", [convolved, _per_channel(graph, layer, "bias", _tensor(layer.module.bias))])


def _float_conv(graph: _Builder, layer: _Layer) -> str:
    return graph.node("Conv", [_INPUT, _float_weight(graph, layer)], **convolution_geometry(layer.module))


def _int8_conv(graph: _Builder, layer: _Layer) -> str:
    values, scales = int8_per_channel(_tensor(layer.module.weight), bits=layer.choice.weight_bits)
    weight = graph.constant("weight_int8", values)
    quantize = _static_input if layer.choice.needs_calibration else _dynamic_input
    quantized, scale, zero_point = quantize(graph, layer)
    product = graph.node("ConvInteger", [quantized, weight, zero_point], **convolution_geometry(layer.module))
    return _scaled(graph, product, scale, _per_channel(graph, layer, "weight_scale", scales))


def _embedding(graph: _Builder, layer: _Layer) -> str:
    if layer.choice.precision.is_quantized:
        return _integer_rows(graph, layer, layer.choice.precision.bits)
    rows = graph.node("Gather", [_stored_weight(graph, layer), _INPUT])
    return rows if layer.choice.precision.bits == 32 else graph.node("Cast", [rows], to=TensorProto.FLOAT)


def _integer_rows(graph: _Builder, layer: _Layer, bits: int) -> str:
    weight = _tensor(layer.module.weight)
    quantized, scales, offsets = affine_per_row(weight, bits)
    values = quantized.int_repr().view(len(weight), -1)  # with 4 bits, two features per byte
    rows = graph.node("Gather", [graph.constant(f"weight_int{bits}", values), _INPUT])
    rows = _unpacked(graph, rows) if bits == 4 else rows
    # As in PyTorch's kernel, scales and offsets of 4-bit rows are fp16.
    stored = [row[:, None].to(torch.float16 if bits == 4 else torch.float32) for row in (scales, offsets)]
    scale, offset = (
        graph.node("Gather", [graph.constant(f"weight_{name}", row), _INPUT])
        for name, row in zip(("scale", "offset"), stored, strict=True)
    )
    if bits == 4:
        scale, offset = (graph.node("Cast", [name], to=TensorProto.FLOAT) for name in (scale, offset))
    scaled = graph.node("Mul", [graph.node("Cast", [rows], to=TensorProto.FLOAT), scale])
    return graph.node("Add", [scaled, offset])


def _unpacked(graph: _Builder, rows: str) -> str:
    """Return the unpacked 4-bit integers, twice as many features; the lower half of each byte comes first."""
    last = graph.constant("last", np.array([-1]))
    low = graph.node("BitwiseAnd", [rows, graph.constant("low_half", np.uint8(15))])
    high = graph.node("BitShift", [rows, graph.constant("half", np.uint8(4))], direction="RIGHT")
    pairs = graph.node("Concat", [graph.node("Unsqueeze", [half, last]) for half in (low, high)], axis=-1)
    shape = graph.node("Concat", [graph.node("Shape", [rows], end=-1), last], axis=0)
    return graph.node("Reshape", [pairs, shape])


def _static_input(graph: _Builder, layer: _Layer, x: str = _INPUT) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the calibrated range."""
    assert layer.input_range is not None
    scale, zero_point = layer.input_range.affine_uint8()
    names = (
        graph.constant("input_scale", np.float32(scale)),
        graph.constant("input_zero_point", np.uint8(zero_point)),
    )
    return graph.node("QuantizeLinear", [x, *names]), *names


def _dynamic_input(graph: _Builder, layer: _Layer) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the input's own range."""
    quantized = graph.node("DynamicQuantizeLinear", [_INPUT], outputs=3)
    node = graph.nodes[-1]
    return quantized, node.output[1], node.output[2]


def _per_token_input(graph: _Builder, one: str) -> tuple[str, str, str]:
    """Return the quantized input, its per-row scales and the shared zero point."""
    last = graph.constant("last", np.array([-1]))
    ends = [graph.node("ReduceMax", [_INPUT, last], keepdims=1), graph.node("ReduceMin", [_INPUT, last], keepdims=1)]
    largest = graph.node("Max", [graph.node("Abs", [end]) for end in ends])
    scale = graph.node("Div", [largest, graph.constant("largest", np.float32(INT8_LARGEST))])
    scale = graph.node("Max", [scale, graph.constant("least", np.finfo(np.float32).tiny)])
    zero_point = graph.constant("input_zero_point", np.uint8(ZERO_OF_ROWS))
    return graph.node("QuantizeLinear", [graph.node("Div", [_INPUT, scale]), one, zero_point]), scale, zero_point


def _scaled(graph: _Builder, product: str, input_scale: str, weight_scale: str) -> str:
    # ONNX Runtime fuses these operations into one kernel only in this order.
    scale = graph.node("Mul", [input_scale, weight_scale])
    return graph.node("Mul", [graph.node("Cast", [product], to=TensorProto.FLOAT), scale])


def _int8_weight(graph: _Builder, layer: _Layer) -> tuple[str, str]:
    """Return the weight of a linear layer, shape ``(in, out)``, and its scales, shape ``(out,)``."""
    values, scales = int8_per_channel(_tensor(layer.module.weight), bits=layer.choice.weight_bits)
    weight = graph.constant("weight_int8", values.T)
    return weight, graph.constant("weight_scale", scales)


def _float_weight(graph: _Builder, layer: _Layer, *, transpose: bool = False) -> str:
    stored = _stored_weight(graph, layer, transpose=transpose)
    # ONNX Runtime's CPU kernels multiply in fp32; the cast constant is widened when the graph is loaded.
    return stored if layer.choice.precision.bits == 32 else graph.node("Cast", [stored], to=TensorProto.FLOAT)


def _stored_weight(graph: _Builder, layer: _Layer, *, transpose: bool = False) -> str:
    """Return the weight in the choice's own floating-point format."""
    weight = _tensor(layer.module.weight)
    weight = weight.T if transpose else weight
    name = "weight"
    match layer.choice.name:
        case "bf16":
            bits = weight.to(torch.bfloat16).contiguous().view(torch.int16)
            return graph.constant(name, bits, TensorProto.BFLOAT16)
        case "fp16":
            return graph.constant(name, weight.to(torch.float16))
    return graph.constant(name, weight)


def _per_channel(graph: _Builder, layer: _Layer, name: str, value: torch.Tensor) -> str:
    """Return a constant with one value per output channel of a convolution."""
    return graph.constant(name, value.view(-1, *[1] * (_tensor(layer.module.weight).dim() - 2)))


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value.detach()


_LINEAR: dict[str, Callable[[_Builder, _Layer], str]] = {
    "fp32": _float_linear,
    "bf16": _float_linear,
    "fp16": _float_linear,
    "int8_static": _static_linear,
    "int8_static_smooth": _smooth_linear,
    "int8_dynamic": _dynamic_linear,
    "int8_dynamic_per_token": _per_token_linear,
    "int8_weight_only": _int8_weight_only_linear,
    "int4_weight_only": _int4_weight_only_linear,
    "int4_weight_only_gptq": _int4_weight_only_linear,
}
_EMIT: dict[type[nn.Module], Callable[[_Builder, _Layer], str]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
}
