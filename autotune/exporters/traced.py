"""A map as an ONNX graph, for formats of runtimes that read one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from autotune.errors import ExportError
from autotune.exporters.base import Source
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.choices import has_place
from workers.backends.packed import range_of
from workers.backends.rounding.bias_correction import corrected

if TYPE_CHECKING:
    from workers.backends.onnx.builder import Fragment
    from workers.backends.onnx.graph import Graph, Traced


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedGraph:
    """A graph in which every layer computes its own choice."""

    traced: "Traced"
    graph: "Graph"
    #: Layer -> names of its nodes.
    nodes: Mapping[str, Sequence[str]]


def mapped_graph(
    source: Source,
    fragment: "Callable[[nn.Module, LayerChoice, ActivationRange | None], Fragment]",
    *,
    attention: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> MappedGraph:
    """Return the graph of the source's map, in which ``fragment`` makes the nodes of each layer.

    Attention is traced in the context ``attention``.

    Raises:
        BackendError: if the model cannot be traced.
        ExportError: if the graph lacks a layer with a choice other than full precision.
    """
    from workers.backends.onnx.graph import trace

    batch_sizes = source.file.measurement.batch_sizes
    traced = trace(source.task, source.model, source.layers, batch_sizes, attention=attention)
    quantization = source.file.quantization_map()
    fragments = {}
    for layer in filter(has_place, source.layers):
        choice, known = quantization.choices[layer.name], quantization.ranges.get(layer.name)
        module = corrected(source.model.get_submodule(layer.name), choice, known)
        fragments[layer.name] = fragment(module, choice, range_of(choice, known))
    graph, nodes = traced.filled(fragments)
    _check({layer: names for layer, names in nodes.items() if quantization.choices[layer] != FULL_PRECISION})
    return MappedGraph(traced=traced, graph=graph, nodes=nodes)


def _check(nodes: Mapping[str, Sequence[str]]) -> None:
    """Check that the graph contains nodes of every layer."""
    missing = [layer for layer, names in nodes.items() if not names]
    if missing:
        raise ExportError(
            f"the traced graph lacks the layers {', '.join(missing)}: the model does not use their outputs, or takes "
            "a different path for other inputs; pin them to fp32 and run a new job"
        )
