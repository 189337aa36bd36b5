"""One layer with one choice as ONNX nodes, which compute what the x86 backend's kernels compute.

Integers, scales and zero points are those of ``workers.backends``; nothing is calibrated or rounded again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autotune.exporters.geometry import convolution_geometry
from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.weight_quantization import INT4_GROUP, affine_per_row, int4_per_group, int8_per_channel

#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Input features that share one scale of ``MatMulNBits`` with 8 bits; ours are equal along the whole row.
_INT8_BLOCK = 128
#: ``MatMulNBits`` multiplies in fp32; its faster levels would quantize activations.
_FP32_PRODUCTS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One use of a layer in the graph."""

    #: Layer name, which starts the names of its constants.
    layer: str
    module: nn.Module
    choice: LayerChoice
    #: Calibrated input range, for static choices.
    input_range: ActivationRange | None
    #: Names of the values the layer reads and writes.
    input: str
    output: str
    #: Starts the names of the nodes: unique in the graph.
    prefix: str


class GraphBuilder:
    """Collects the nodes of one graph and the constants they share."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._prefix = ""

    def layer(self, call: Call) -> list[onnx.NodeProto]:
        """Add the nodes of one call and return them."""
        start, self._prefix = len(self.nodes), call.prefix
        with torch.no_grad():
            last = _EMIT[type(call.module)](self, call)
        added = self.nodes[start:]
        for node in added:
            node.output[:] = [call.output if name == last else name for name in node.output]
        return added

    def node(self, op: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its first output; the others' names end in their number."""
        name = f"{self._prefix}/{op}_{len(self.nodes)}"
        results = [f"{name}:{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, results, name=name, domain=domain, **attributes))
        return results[0]

    def constant(
        self, name: str, value: torch.Tensor | npt.NDArray[Any] | np.generic, data_type: int | None = None
    ) -> str:
        """Add a constant, once; its bytes are read as ``data_type`` if numpy lacks that type."""
        if name not in self.constants:
            array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            constant = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            constant.data_type = data_type or constant.data_type
            self.constants[name] = constant
        return name


def _linear(graph: GraphBuilder, call: Call) -> str:
    product = _LINEAR[call.choice.name](graph, call)
    if call.module.bias is None:
        return product
    return graph.node("Add", [product, graph.constant(f"{call.layer}.bias", _tensor(call.module.bias))])


def _float_linear(graph: GraphBuilder, call: Call) -> str:
    return graph.node("MatMul", [call.input, _float_weight(graph, call, transpose=True)])


def _static_linear(graph: GraphBuilder, call: Call) -> str:
    values, scales = _int8_weight(graph, call)
    quantized, scale, zero_point = _static_input(graph, call)
    x = graph.node("DequantizeLinear", [quantized, scale, zero_point])
    weight = graph.node("DequantizeLinear", [values, scales], axis=1)
    return graph.node("MatMul", [x, weight])


def _dynamic_linear(graph: GraphBuilder, call: Call) -> str:
    values, scales = _int8_weight(graph, call)
    quantized, scale, zero_point = _dynamic_input(graph, call)
    return _scaled(graph, graph.node("MatMulInteger", [quantized, values, zero_point]), scale, scales)


def _int8_weight_only_linear(graph: GraphBuilder, call: Call) -> str:
    values, scales = int8_per_channel(_tensor(call.module.weight), torch.bfloat16)
    outputs, features = values.shape
    blocks = math.ceil(features / _INT8_BLOCK)
    packed = np.full((outputs, blocks * _INT8_BLOCK), 128, dtype=np.uint8)
    packed[:, :features] = values.numpy().astype(np.int16) + 128
    weight = graph.constant(f"{call.layer}.weight_int8", packed.reshape(outputs, blocks, _INT8_BLOCK))
    scale = graph.constant(f"{call.layer}.weight_scale", scales.float()[:, None].expand(outputs, blocks))
    return _n_bits(graph, call, [weight, scale], 8, _INT8_BLOCK)


def _int4_weight_only_linear(graph: GraphBuilder, call: Call) -> str:
    values, scales, zeros = int4_per_group(_tensor(call.module.weight))
    outputs, features = values.shape
    pairs = values.to(torch.uint8).view(outputs, features // INT4_GROUP, INT4_GROUP // 2, 2)
    weight = graph.constant(f"{call.layer}.weight_int4", pairs[..., 0] | (pairs[..., 1] << 4))
    scale = graph.constant(f"{call.layer}.weight_scale", scales.float())
    # (v - 8) s + z is (v - (8 - z / s)) s.
    zero_point = graph.constant(f"{call.layer}.weight_zero_point", 8.0 - zeros.float() / scales.float())
    return _n_bits(graph, call, [weight, scale, zero_point], 4, INT4_GROUP)


def _n_bits(graph: GraphBuilder, call: Call, weight: Sequence[str], bits: int, block: int) -> str:
    outputs, features = _tensor(call.module.weight).shape
    return graph.node(
        "MatMulNBits", [call.input, *weight], domain=MICROSOFT,
        K=features, N=outputs, bits=bits, block_size=block, accuracy_level=_FP32_PRODUCTS,
    )  # fmt: skip


def _conv(graph: GraphBuilder, call: Call) -> str:
    convolved = (_int8_conv if call.choice.needs_int8_products else _float_conv)(graph, call)
    if call.module.bias is None:
        return convolved
    return graph.node("Add", [convolved, _per_channel(graph, call, "bias", _tensor(call.module.bias))])


def _float_conv(graph: GraphBuilder, call: Call) -> str:
    return graph.node("Conv", [call.input, _float_weight(graph, call)], **convolution_geometry(call.module))


def _int8_conv(graph: GraphBuilder, call: Call) -> str:
    values, scales = int8_per_channel(_tensor(call.module.weight))
    weight = graph.constant(f"{call.layer}.weight_int8", values)
    quantize = _static_input if call.choice.needs_calibration else _dynamic_input
    quantized, scale, zero_point = quantize(graph, call)
    product = graph.node("ConvInteger", [quantized, weight, zero_point], **convolution_geometry(call.module))
    return _scaled(graph, product, scale, _per_channel(graph, call, "weight_scale", scales))


def _embedding(graph: GraphBuilder, call: Call) -> str:
    if call.choice.precision.is_quantized:
        return _integer_rows(graph, call, call.choice.precision.bits)
    rows = graph.node("Gather", [_stored_weight(graph, call), call.input])
    return rows if call.choice.precision.bits == 32 else graph.node("Cast", [rows], to=TensorProto.FLOAT)


def _integer_rows(graph: GraphBuilder, call: Call, bits: int) -> str:
    weight = _tensor(call.module.weight)
    quantized, scales, offsets = affine_per_row(weight, bits)
    values = quantized.int_repr().view(len(weight), -1)  # two features a byte with 4 bits
    rows = graph.node("Gather", [graph.constant(f"{call.layer}.weight_int{bits}", values), call.input])
    rows = _unpacked(graph, rows) if bits == 4 else rows
    # PyTorch's kernel holds them in fp16 beside 4-bit rows.
    stored = [row[:, None].to(torch.float16 if bits == 4 else torch.float32) for row in (scales, offsets)]
    scale, offset = (
        graph.node("Gather", [graph.constant(f"{call.layer}.weight_{name}", row), call.input])
        for name, row in zip(("scale", "offset"), stored, strict=True)
    )
    if bits == 4:
        scale, offset = (graph.node("Cast", [name], to=TensorProto.FLOAT) for name in (scale, offset))
    scaled = graph.node("Mul", [graph.node("Cast", [rows], to=TensorProto.FLOAT), scale])
    return graph.node("Add", [scaled, offset])


def _unpacked(graph: GraphBuilder, rows: str) -> str:
    """Return 4-bit integers of twice the features; the lower half of each byte comes first."""
    last = graph.constant("autotune/last", np.array([-1]))
    low = graph.node("BitwiseAnd", [rows, graph.constant("autotune/low_half", np.uint8(15))])
    high = graph.node("BitShift", [rows, graph.constant("autotune/half", np.uint8(4))], direction="RIGHT")
    pairs = graph.node("Concat", [graph.node("Unsqueeze", [half, last]) for half in (low, high)], axis=-1)
    shape = graph.node("Concat", [graph.node("Shape", [rows], end=-1), last], axis=0)
    return graph.node("Reshape", [pairs, shape])


def _static_input(graph: GraphBuilder, call: Call) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the calibrated range."""
    assert call.input_range is not None
    scale, zero_point = call.input_range.affine_uint8()
    names = (
        graph.constant(f"{call.layer}.input_scale", np.float32(scale)),
        graph.constant(f"{call.layer}.input_zero_point", np.uint8(zero_point)),
    )
    return graph.node("QuantizeLinear", [call.input, *names]), *names


def _dynamic_input(graph: GraphBuilder, call: Call) -> tuple[str, str, str]:
    """Return the quantized input, its scale and its zero point, from the range it spans."""
    quantized = graph.node("DynamicQuantizeLinear", [call.input], outputs=3)
    node = graph.nodes[-1]
    return quantized, node.output[1], node.output[2]


def _scaled(graph: GraphBuilder, product: str, input_scale: str, weight_scale: str) -> str:
    # In this order and no other ONNX Runtime turns the whole of it into one kernel.
    scale = graph.node("Mul", [input_scale, weight_scale])
    return graph.node("Mul", [graph.node("Cast", [product], to=TensorProto.FLOAT), scale])


def _int8_weight(graph: GraphBuilder, call: Call) -> tuple[str, str]:
    """Return the weight of a linear layer, shape ``(in, out)``, and its scales, shape ``(out,)``."""
    values, scales = int8_per_channel(_tensor(call.module.weight))
    weight = graph.constant(f"{call.layer}.weight_int8", values.T)
    return weight, graph.constant(f"{call.layer}.weight_scale", scales)


def _float_weight(graph: GraphBuilder, call: Call, *, transpose: bool = False) -> str:
    stored = _stored_weight(graph, call, transpose=transpose)
    # ONNX Runtime's CPU kernels multiply in fp32; it widens the constant when it loads the file.
    return stored if call.choice.precision.bits == 32 else graph.node("Cast", [stored], to=TensorProto.FLOAT)


def _stored_weight(graph: GraphBuilder, call: Call, *, transpose: bool = False) -> str:
    """Return the weight in the choice's own floating-point format."""
    weight = _tensor(call.module.weight)
    weight = weight.T if transpose else weight
    name = f"{call.layer}.weight"
    match call.choice.name:
        case "bf16":
            bits = weight.to(torch.bfloat16).contiguous().view(torch.int16)
            return graph.constant(name, bits, TensorProto.BFLOAT16)
        case "fp16":
            return graph.constant(name, weight.to(torch.float16))
    return graph.constant(name, weight)


def _per_channel(graph: GraphBuilder, call: Call, name: str, value: torch.Tensor) -> str:
    """Return a constant with one value for each output channel of a convolution."""
    return graph.constant(f"{call.layer}.{name}", value.view(-1, *[1] * (_tensor(call.module.weight).dim() - 2)))


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value.detach()


_LINEAR: dict[str, Callable[[GraphBuilder, Call], str]] = {
    "fp32": _float_linear,
    "bf16": _float_linear,
    "fp16": _float_linear,
    "int8_static": _static_linear,
    "int8_dynamic": _dynamic_linear,
    "int8_weight_only": _int8_weight_only_linear,
    "int4_weight_only": _int4_weight_only_linear,
}
_EMIT: dict[type[nn.Module], Callable[[GraphBuilder, Call], str]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
}
