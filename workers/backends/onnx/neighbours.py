"""What the graph around layers allows: padding that a convolution can do, and outputs that are quantized at once."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from workers.backends.onnx.builder import Fragment
from workers.backends.onnx.placeholders import DOMAIN

#: Share of a bound by which rounding of a scale may exceed it.
_ROUNDING = 1e-6

#: Name -> value.
Constants = Mapping[str, npt.NDArray[np.generic]]
#: Name of a value -> nodes that read it; an output of the graph is read by None.
Readers = Mapping[str, Sequence[onnx.NodeProto | None]]


def layer_of(placeholder: onnx.NodeProto) -> str:
    """Return the name of the layer that a placeholder stands for."""
    name: bytes = placeholder.attribute[0].s
    return name.decode()


def fold_pads(graph: onnx.GraphProto, fragments: Mapping[str, Fragment]) -> dict[str, Fragment]:
    """Return the fragments, in which convolutions add the zeros that the graph puts around their inputs.

    Their placeholders in ``graph`` then read what was padded.
    """
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    constants, folded = _constants(graph), dict(fragments)
    for layer, calls in _calls(graph).items():
        padded = [pads.get(call.input[0]) for call in calls]
        zeros = {None if pad is None else _zeros_around(pad, constants) for pad in padded}
        (added,) = zeros if len(zeros) == 1 else (None,)
        fragment = fragments[layer].padded(added) if added else None
        if fragment is not None:
            folded[layer] = fragment
            for call in calls:
                call.input[0] = pads[call.input[0]].input[0]
    readers = _readers(graph)
    for output, pad in pads.items():
        if not readers[output]:
            graph.node.remove(pad)
    return folded


def quantized_at_once(graph: onnx.GraphProto, fragments: Mapping[str, Fragment]) -> dict[str, list[onnx.NodeProto]]:
    """Return the layers whose outputs are read by one layer only, which quantizes them with a calibrated range.

    Returns:
        Layer name -> clamps behind its calls, which the range makes superfluous.
    """
    constants, readers, found = _constants(graph), _readers(graph), {}
    for layer, calls in _calls(graph).items():
        if fragments[layer].requantized is None:
            continue
        clamps = [_clamps_before_integers(call.output[0], readers, constants, fragments) for call in calls]
        if None not in clamps:
            found[layer] = [clamp for of_call in clamps for clamp in of_call or ()]
    return found


def _clamps_before_integers(
    value: str, readers: Readers, constants: Constants, fragments: Mapping[str, Fragment]
) -> list[onnx.NodeProto] | None:
    """Return the clamps between ``value`` and the layer that quantizes it, or None if anything else reads it."""
    clamps: list[onnx.NodeProto] = []
    while len(readers[value]) == 1:
        (reader,) = readers[value]
        if reader is None or reader.input[0] != value:
            return None
        if reader.domain == DOMAIN:
            quantizes = fragments[layer_of(reader)].quantizes
            superfluous = quantizes is not None and all(_within(quantizes, each, constants) for each in clamps)
            return clamps if superfluous else None
        if reader.op_type not in ("Relu", "Clip"):
            return None
        clamps.append(reader)
        value = reader.output[0]
    return None


def _within(quantizes: tuple[float, int], clamp: onnx.NodeProto, constants: Constants) -> bool:
    """Return whether no integer stands for a number that the clamp would change."""
    scale, zero_point = quantizes
    low, high = (0.0, math.inf) if clamp.op_type == "Relu" else (-math.inf, math.inf)
    for index, name in enumerate(clamp.input[1:]):
        if name and name not in constants:
            return False
        if name:
            bound = float(constants[name].item())
            low, high = (bound, high) if index == 0 else (low, bound)
    lowest, highest = -zero_point * scale, (255 - zero_point) * scale
    return lowest >= low - _ROUNDING * abs(low) and highest <= high + _ROUNDING * abs(high)


def _zeros_around(pad: onnx.NodeProto, constants: Constants) -> tuple[int, ...] | None:
    """Return the zeros before each spatial dimension, then behind each, or None if it pads anything else."""
    mode = next((attribute.s for attribute in pad.attribute if attribute.name == "mode"), b"constant")
    amounts, value, axes = ([*pad.input[1:], "", "", ""])[:3]
    if mode != b"constant" or axes or amounts not in constants or (value and value not in constants):
        return None
    if value and constants[value].item() != 0.0:
        return None
    begins, ends = np.split(constants[amounts], 2)
    if min(begins.min(), ends.min()) < 0 or any(begins[:2]) or any(ends[:2]):
        return None
    return (*map(int, begins[2:]), *map(int, ends[2:]))


def _calls(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return layer name -> its placeholders."""
    calls = defaultdict(list)
    for node in graph.node:
        if node.domain == DOMAIN:
            calls[layer_of(node)].append(node)
    return calls


def _readers(graph: onnx.GraphProto) -> Readers:
    readers: dict[str, list[onnx.NodeProto | None]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for value in graph.output:
        readers[value.name].append(None)
    return readers


def _constants(graph: onnx.GraphProto) -> Constants:
    """Return the small constants of a graph."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if math.prod(tensor.dims) <= 16}
