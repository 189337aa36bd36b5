"""Trace a model into an ONNX graph, and put each layer's own nodes where it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn

from autotune.errors import ExportError
from autotune.exporters.onnx_layers import MICROSOFT, Call, GraphBuilder
from search_spaces.quantization_map import QuantizationMap

#: Domain of the placeholders.
DOMAIN = "autotune"
#: Protobuf, in which ONNX is written, holds no more.
_MAX_BYTES = (1 << 31) - 1


def trace(
    model: nn.Module,
    tensors: tuple[torch.Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Sequence[Mapping[int, Any]],
    *,
    opset: int,
) -> onnx.ModelProto:
    """Return the graph of ``model`` on ``tensors``.

    Raises:
        ExportError: if PyTorch cannot trace the model.
    """
    try:
        program = torch.onnx.export(
            model, tensors, dynamo=True, opset_version=opset, input_names=inputs, output_names=outputs,
            dynamic_shapes=(tuple(dynamic),), verbose=False,
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ExportError(
            "PyTorch cannot trace this model into ONNX; its forward must not depend on the values of its inputs: "
            f"{str(cause).strip().splitlines()[0]}"
        ) from error
    assert program is not None
    return program.model_proto


def fill(
    graph: onnx.ModelProto, modules: Mapping[str, nn.Module], quantization: QuantizationMap
) -> dict[str, list[str]]:
    """Replace the placeholders in ``graph`` in place; return layer name -> names of its nodes."""
    builder = GraphBuilder()
    names: dict[str, list[str]] = {layer: [] for layer in modules}
    calls = dict.fromkeys(modules, 0)
    filled: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        if node.domain != DOMAIN:
            filled.append(node)
            continue
        layer = node.attribute[0].s.decode()
        calls[layer] += 1
        added = builder.layer(
            Call(
                layer=layer,
                module=modules[layer],
                choice=quantization.choices[layer],
                input_range=quantization.ranges.get(layer),
                input=node.input[0],
                output=node.output[0],
                prefix=layer if calls[layer] == 1 else f"{layer}#{calls[layer]}",
            )
        )
        names[layer] += [node.name for node in added]
        filled += added
    _replace(graph, filled, builder)
    return names


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph, if ONNX Runtime takes it.

    Raises:
        ExportError: if it does not, or the graph is larger than ONNX files may be.
    """
    from autotune.exporters.onnx_runtime import open_session

    if graph.ByteSize() > _MAX_BYTES:
        raise ExportError("an ONNX file holds at most 2 GiB; choose narrower precisions, or the format map")
    onnx.save_model(graph, path)
    open_session(path)


def _replace(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], builder: GraphBuilder) -> None:
    for described in (graph, graph.graph, *nodes, *graph.graph.initializer, *graph.graph.value_info):
        # PyTorch notes stack traces there: paths of this machine, which differ from run to run.
        del described.metadata_props[:]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(builder.constants.values())
    kept = [entry for entry in graph.opset_import if entry.domain != DOMAIN]
    del graph.opset_import[:]
    graph.opset_import.extend([*kept, helper.make_opsetid(MICROSOFT, 1)])
