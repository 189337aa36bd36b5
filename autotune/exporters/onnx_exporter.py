"""The ``onnxruntime`` format: one ONNX file in which every layer runs with its own choice."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autotune.errors import ExportError
from autotune.exporters import libraries
from autotune.exporters.base import Source
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer
from workers.backends.onnx import choices
from workers.backends.packed import range_of
from workers.backends.rounding.bias_correction import corrected

#: File names in the folder: the graph, and the nodes of each layer.
MODEL, LAYERS = "model.onnx", "layers.json"


class OnnxExporter:
    """Writes a graph with our integers, scales and ranges; ONNX Runtime fuses its nodes when it loads the graph."""

    name = "onnxruntime"
    rounding = (
        "none after a search in ONNX Runtime; after a search in another backend, int8 static and dynamic layers hold "
        "the same integers and ranges, so only sums differ in their last bits, which occasionally rounds an activation "
        "to the neighbouring integer; bf16, int8 and int4 weight-only layers hold the same weights, but ONNX Runtime "
        "multiplies in fp32, whereas the search multiplied in bf16"
    )
    libraries = ("onnx", "onnxruntime", "onnxscript", "torch")
    untimed = None
    as_built = False

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return choices.refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from workers.backends.onnx.fragments import fragment
            from workers.backends.onnx.graph import serialized, trace
            from workers.backends.onnx.session import open_session

            traced = trace(source.task, source.model, source.layers, source.file.measurement.batch_sizes)
            quantization = source.file.quantization_map()
            fragments = {}
            for layer in filter(choices.has_place, source.layers):
                choice, known = quantization.choices[layer.name], quantization.ranges.get(layer.name)
                module = corrected(source.model.get_submodule(layer.name), choice, known)
                fragments[layer.name] = fragment(module, choice, range_of(choice, known))
            graph, nodes = traced.filled(fragments)
            _check({layer: names for layer, names in nodes.items() if quantization.choices[layer] != FULL_PRECISION})
            content = serialized(graph)
            open_session(content)
        Path(folder, MODEL).write_bytes(content)
        document = {layer: {"choice": source.file.layers[layer].choice, "nodes": nodes[layer]} for layer in nodes}
        Path(folder, LAYERS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return {"arguments": list(traced.arguments), "form": traced.form}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            from workers.backends.onnx.session import OnnxModule, open_session

            return OnnxModule(open_session(Path(folder, MODEL)), details["arguments"], details["form"])


def _check(nodes: Mapping[str, Sequence[str]]) -> None:
    """Check that the graph contains nodes of every layer."""
    missing = [layer for layer, names in nodes.items() if not names]
    if missing:
        raise ExportError(
            f"the traced graph lacks the layers {', '.join(missing)}: the model does not use their outputs, or takes "
            "a different path for other inputs; pin them to fp32 and run a new job"
        )
