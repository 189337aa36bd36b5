"""The operators that OpenVINO made of a map: what they compute, in which precision, and what they hold."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.choice import LayerChoice, Precision
from workers.backends.onnx.graph import Graph
from workers.backends.onnx.profiling import layer_named

#: Kinds of operators that compute layers; the others prepare their inputs or use their outputs.
_OF_LAYERS = frozenset({"Convolution", "FullyConnected", "Gather", "MatMul"})
#: Weight precision -> types of constants that hold such weights.
_WEIGHTS = {
    Precision.FP32: {"f32"},
    Precision.BF16: {"bf16"},
    Precision.INT8: {"i8", "u8"},
    Precision.INT4: {"i4", "u4"},
}
#: Types of quantized inputs.
_INTEGERS = {"i8", "u8"}
#: Kinds of operators that hand on their input without copying it.
_VIEWS = frozenset({"Reshape"})
#: Kinds of operators that compute nothing in a pass.
OUTSIDE = frozenset({"Const", "Input", "Output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a compiled model."""

    #: Unique in the model.
    name: str
    #: OpenVINO's name of its kind, for example ``FullyConnected``.
    kind: str
    #: Names of the graph's nodes that were fused into it.
    origins: tuple[str, ...]
    #: OpenVINO's names of the types of its inputs, for example ``u8``.
    input_types: tuple[str, ...]
    #: Positions of the operators that make its inputs.
    reads: tuple[int, ...]
    #: Bytes of its outputs; 0 if their shapes vary.
    nbytes: int


def own_names(graph: Graph) -> dict[str, str]:
    """Return the names under which OpenVINO knows nodes, where these are not the nodes' own -> their own.

    It names the node that makes an output of the graph after the output.
    """
    outputs = {value.name for value in graph.graph.output}
    return {name: node.name for node in graph.graph.node for name in node.output if name in outputs}


def named_after(names: Sequence[str], layers: Collection[str], renamed: Mapping[str, str]) -> dict[str, list[str]]:
    """Return layer -> those of ``names`` that are named after it; ``renamed`` is as of ``own_names``."""
    found: dict[str, list[str]] = {layer: [] for layer in layers}
    for name in names:
        layer = layer_named(renamed.get(name, name), layers)
        if layer is not None:
            found[layer].append(name)
    return found


def layer_of(operator: Operator, layers: Collection[str], renamed: Mapping[str, str]) -> str | None:
    """Return the layer that an operator belongs to, or None: the first of the layers it was fused from.

    Args:
        operator: the operator.
        layers: names of layers.
        renamed: see ``own_names``.
    """
    found = (layer_named(renamed.get(origin, origin), layers) for origin in operator.origins)
    return next((layer for layer in found if layer is not None), None)


def computed_otherwise(
    operators: Sequence[Operator], choices: Mapping[str, LayerChoice], renamed: Mapping[str, str]
) -> Iterator[str]:
    """Yield the layers with an operator that computes in another precision than their choices say."""
    for operator in operators:
        layer = layer_of(operator, choices, renamed) if operator.kind in _OF_LAYERS else None
        if layer is not None and not _as_chosen(operator, choices[layer]):
            yield layer


def _as_chosen(operator: Operator, choice: LayerChoice) -> bool:
    first, second, *_ = operator.input_types
    if operator.kind == "Gather":
        # OpenVINO may quantize a table instead of what was looked up in it, which gives the same numbers.
        return first in _WEIGHTS[choice.precision] or (first in _INTEGERS and not choice.precision.is_quantized)
    inputs = _INTEGERS if choice.needs_int8_products else {"bf16"} if choice.precision is Precision.BF16 else {"f32"}
    return first in inputs and second in _WEIGHTS[choice.precision]


def peak_bytes(operators: Sequence[Operator]) -> int:
    """Return the largest sum of outputs that are live at the same time in a pass through a model of fixed shapes.

    An output is live until its last reader has run. What follows from constants alone is computed once, beforehand.
    """
    constant: set[int] = set()
    holder = list(range(len(operators)))  # the operator whose memory the output of each lies in
    last_reader: dict[int, int] = {}
    for number, operator in enumerate(operators):
        if operator.kind == "Const" or (operator.reads and constant.issuperset(operator.reads)):
            constant.add(number)
        if operator.kind in _VIEWS:
            holder[number] = holder[operator.reads[0]]
        for read in operator.reads:
            last_reader[holder[read]] = number
    live, peak = 0, 0
    held: dict[int, list[int]] = {}
    for number, operator in enumerate(operators):
        if operator.kind not in OUTSIDE and operator.kind not in _VIEWS and number not in constant:
            live += operator.nbytes
            held.setdefault(last_reader.get(number, number), []).append(operator.nbytes)
        peak = max(peak, live)
        live -= sum(held.pop(number, ()))
    return peak
