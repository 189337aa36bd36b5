"""Build fragments: one layer with one choice as ONNX nodes and constants."""

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

#: Name under which nodes read the layer's input before they are placed.
INPUT = "input"
#: Domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Types of tensors.
FLOAT, BFLOAT16, UINT4 = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.UINT4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One layer with one choice: nodes and constants with local names, to be placed at each call of the layer."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    #: Local name of the layer's output.
    output: str
    #: Scale and zero point with which the layer quantizes its input, if they are calibrated.
    quantizes: tuple[float, int] | None = None
    #: The same layer in as many bytes, for a place where its output is quantized at once; None if that changes nothing.
    requantized: "Fragment | None" = None

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
        names = {INPUT: reads, self.output: writes} | {name: f"{layer}.{name}" for name in self.constants}
        names[""] = ""  # an optional input that is absent
        placed = []
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{call}/{node.name}"
            copy.input[:] = [names.get(name, f"{call}/{name}") for name in node.input]
            copy.output[:] = [names.get(name, f"{call}/{name}") for name in node.output]
            placed.append(copy)
        return placed

    def padded(self, pads: Sequence[int]) -> "Fragment | None":
        """Return the fragment of a convolution with more zeros around its input, or None if it is none.

        Args:
            pads: zeros before each spatial dimension, then behind each.
        """
        convolves = [node for node in self.nodes if node.op_type == "Conv"]
        if not convolves:
            return None
        requantized = self.requantized and self.requantized.padded(pads)
        return replace(self, nodes=tuple(_padded(node, pads) for node in self.nodes), requantized=requantized)

    def placed_constants(self, layer: str) -> Iterator[onnx.TensorProto]:
        """Yield the constants under the names used by the placed nodes."""
        for name, constant in self.constants.items():
            copy = onnx.TensorProto()
            copy.CopyFrom(constant)
            copy.name = f"{layer}.{name}"
            yield copy


def _padded(node: onnx.NodeProto, pads: Sequence[int]) -> onnx.NodeProto:
    """Return ``node`` with more padding if it is a convolution."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [own + more for own, more in zip(attribute.ints, pads, strict=True)]
    return copy


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerToConvert:
    """The layer to convert."""

    module: nn.Module
    choice: LayerChoice
    #: Calibrated input range, for choices that need calibration.
    input_range: ActivationRange | None

    @property
    def weight(self) -> torch.Tensor:
        """The full-precision weight."""
        assert isinstance(self.module.weight, torch.Tensor)
        return self.module.weight.detach()

    @property
    def bias(self) -> torch.Tensor | None:
        """The full-precision bias, if the layer has one."""
        bias = self.module.bias
        return bias.detach() if isinstance(bias, torch.Tensor) else None


class Builder:
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

    def packed(self, name: str, content: torch.Tensor, data_type: int, shape: Sequence[int]) -> str:
        """Add a constant whose bytes hold more than one number each, and return its name."""
        self.constants[name] = onnx.TensorProto(
            name=name, data_type=data_type, dims=shape, raw_data=content.contiguous().numpy().tobytes()
        )
        return name

    def integers(self, *values: int) -> str:
        """Add a node with a few integers that only say where other nodes read, and return its output."""
        return self.node("Constant", [], value_ints=values)


#: Adds the nodes of a layer to a builder and returns the name of its output.
Emit = Callable[[Builder, LayerToConvert], str]


def build(layer: LayerToConvert, emitters: Mapping[type[nn.Module], Emit]) -> Fragment:
    """Return the fragment of ``layer``, built by the emitter of its type."""
    return built(layer, next(emit for kind, emit in emitters.items() if isinstance(layer.module, kind)))


def built(layer: LayerToConvert, emit: Emit) -> Fragment:
    """Return the fragment of ``layer`` that ``emit`` builds."""
    graph = Builder()
    with torch.no_grad():
        output = emit(graph, layer)
    return Fragment(nodes=tuple(graph.nodes), constants=graph.constants, output=output)
