"""The ``onnxruntime`` format: one ONNX file in which every layer runs with its own choice."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autotune.exporters import libraries
from autotune.exporters.base import Source
from autotune.exporters.traced import mapped_graph
from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from workers.backends.onnx import choices

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
    rounds_anew = ()

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return choices.refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from workers.backends.onnx.attention import fused_attention
            from workers.backends.onnx.fragments import fragment
            from workers.backends.onnx.graph import serialized
            from workers.backends.onnx.session import open_session

            mapped = mapped_graph(source, fragment, attention=fused_attention)
            content = serialized(mapped.graph)
            open_session(content)
        Path(folder, MODEL).write_bytes(content)
        document = {
            layer: {"choice": source.file.layers[layer].choice, "nodes": nodes} for layer, nodes in mapped.nodes.items()
        }
        Path(folder, LAYERS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return {"arguments": list(mapped.traced.arguments), "form": mapped.traced.form}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            from workers.backends.onnx.session import OnnxModule, open_session

            return OnnxModule(open_session(Path(folder, MODEL)), details["arguments"], details["form"])
