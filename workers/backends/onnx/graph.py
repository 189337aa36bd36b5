"""Trace a model into an ONNX graph, and replace the placeholder of each layer by its nodes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import onnx
import torch
from onnx import helper
from torch import nn

from search_spaces.layer import Layer
from workers.backends.onnx.builder import MICROSOFT, Fragment
from workers.backends.onnx.neighbours import fold_pads, layer_of, quantized_at_once
from workers.backends.onnx.placeholders import DOMAIN, Flat, places_held
from workers.backends.onnx.signature import signature, task_batches
from workers.errors import BackendError
from workers.task import Task

#: The first operator set with all operators of the graph; ONNX Runtime supports it since 1.20.
_OPSET = 21
#: A whole model as a graph.
Graph = onnx.ModelProto
#: Limit of protobuf, the file format of ONNX.
_MAX_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A model as a graph with a placeholder for each call of a layer that may be quantized."""

    graph: onnx.ModelProto
    #: Positions or names of the model's arguments that are inputs of the graph, in order.
    arguments: tuple[int | str, ...]
    #: Form of the model's result; see ``workers.backends.onnx.signature.in_form``.
    form: str

    def filled(self, fragments: Mapping[str, Fragment]) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
        """Return the graph with fragments in place of placeholders, and layer name -> names of its nodes.

        A layer has no nodes if the graph lacks it, because no output depends on it.
        """
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        return graph, _fill(graph, fragments)


def trace(
    task: Task,
    model: nn.Module,
    layers: Sequence[Layer],
    batch_sizes: Sequence[int],
    *,
    attention: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Traced:
    """Return the graph of ``model`` as called by ``task``; the model is unchanged when the call returns.

    Args:
        task: runs the model.
        model: the full-precision model.
        layers: its layers; those without placeholders become part of the graph.
        batch_sizes: batch sizes at which latency is measured.
        attention: a context in which attention is traced as the runtime likes it.

    Raises:
        BackendError: if PyTorch cannot trace the model, or its inputs or outputs are not tensors.
    """
    calls = signature(task, model, task_batches(task, batch_sizes))
    flat = Flat(model, calls).eval()
    inputs = [f"input_{key}" if isinstance(key, int) else key for key in calls.varying]
    dynamic = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in calls.varying.values())
    try:
        with places_held(model, layers), attention():
            program = torch.onnx.export(
                flat, calls.tensors, dynamo=True, opset_version=_OPSET, input_names=inputs,
                output_names=flat.output_names, dynamic_shapes=(dynamic,), verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise BackendError(
            "PyTorch cannot trace this model into ONNX; its forward must not depend on the values of its inputs: "
            f"{str(cause).strip().splitlines()[0]}"
        ) from error
    except Exception as error:  # the graph optimizer raises exceptions of any type
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise BackendError(
            "PyTorch traced this model, but onnxscript cannot optimize the graph; use another format or backend: "
            f"{type(cause).__name__}: {cause}"
        ) from error
    assert program is not None
    graph = program.model_proto
    _clean(graph)
    _add_before_norms(graph.graph)
    return Traced(graph=graph, arguments=tuple(calls.varying), form=flat.form)


def _fill(graph: onnx.ModelProto, fragments: Mapping[str, Fragment]) -> dict[str, list[str]]:
    fragments = fold_pads(graph.graph, fragments)
    at_once = quantized_at_once(graph.graph, fragments)
    chosen = {
        layer: (fragment.requantized if layer in at_once else None) or fragment for layer, fragment in fragments.items()
    }
    skipped = {clamp.output[0]: clamp.input[0] for clamps in at_once.values() for clamp in clamps}
    names: dict[str, list[str]] = {layer: [] for layer in fragments}
    calls = dict.fromkeys(fragments, 0)
    filled: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        if node.output[0] in skipped:
            continue
        if node.domain != DOMAIN:
            filled.append(node)
            continue
        layer, reads = layer_of(node), node.input[0]
        while reads in skipped:
            reads = skipped[reads]
        calls[layer] += 1
        call = layer if calls[layer] == 1 else f"{layer}#{calls[layer]}"
        added = chosen[layer].place(layer=layer, call=call, reads=reads, writes=node.output[0])
        names[layer] += [node.name for node in added]
        filled += added
    del graph.graph.node[:]
    graph.graph.node.extend(filled)
    for layer in (layer for layer, count in calls.items() if count):
        graph.graph.initializer.extend(chosen[layer].placed_constants(layer))
    return names


def serialized(graph: onnx.ModelProto) -> bytes:
    """Return ``graph`` serialized as a file.

    Raises:
        BackendError: if it exceeds the size limit of ONNX files.
    """
    if graph.ByteSize() > _MAX_BYTES:
        raise BackendError("an ONNX graph holds at most 2 GiB; use lower precisions, or another format or backend")
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def constant_bytes(graph: onnx.ModelProto) -> int:
    """Return the bytes of all constants of ``graph``."""
    return sum(len(constant.raw_data) for constant in graph.graph.initializer)


def _add_before_norms(graph: onnx.GraphProto) -> None:
    """Write sums that a layer norm reads as ``Sum``.

    ONNX Runtime fuses ``Add`` with the norm into ``SkipLayerNormalization``, which takes longer than both.
    """
    normed = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in normed:
            node.op_type = "Sum"


def _clean(graph: onnx.ModelProto) -> None:
    """Remove metadata about where the graph was made, and the placeholders' domain."""
    for described in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.value_info):
        # PyTorch stores stack traces here, with paths of this machine that vary between runs.
        del described.metadata_props[:]
    kept = [entry for entry in graph.opset_import if entry.domain not in (DOMAIN, MICROSOFT)]
    del graph.opset_import[:]
    graph.opset_import.extend([*kept, helper.make_opsetid(MICROSOFT, 1)])
