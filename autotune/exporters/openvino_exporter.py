"""The ``openvino`` format: OpenVINO's own files (IR), in which every layer runs with its own choice."""

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
from workers.backends.openvino import choices

#: File names in the folder: the graph, whose weights are beside it in model.bin, and the operators of each layer.
MODEL, LAYERS = "model.xml", "layers.json"
_EXTRA = "openvino"


class OpenVinoExporter:
    """Writes IR with our integers, scales and ranges; OpenVINO fuses its operators when it compiles the model."""

    name = "openvino"
    rounding = (
        "none after a search in OpenVINO; after a search in another backend, all layers hold the same integers, scales "
        "and ranges, so only sums differ in their last bits, which occasionally rounds an activation to the "
        "neighbouring integer; int8 and int4 weight-only layers hold the same weights, but OpenVINO multiplies in "
        "fp32, where PyTorch may multiply in bf16"
    )
    libraries = ("onnx", "onnxscript", "openvino", "torch")
    untimed = None
    as_built = False
    rounds_anew = ()

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return choices.refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries(_EXTRA):
            from workers.backends.onnx.graph import serialized
            from workers.backends.openvino.fragments import fragment
            from workers.backends.openvino.operators import named_after, own_names
            from workers.backends.openvino.session import open_session, save

            mapped = mapped_graph(source, fragment)
            written = save(serialized(mapped.graph), Path(folder, MODEL))
            open_session(Path(folder, MODEL))
            operators = named_after(written, list(mapped.nodes), own_names(mapped.graph))
        document = {
            layer: {"choice": source.file.layers[layer].choice, "operators": names}
            for layer, names in operators.items()
        }
        Path(folder, LAYERS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return {"arguments": list(mapped.traced.arguments), "form": mapped.traced.form}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries(_EXTRA):
            from workers.backends.openvino.session import OpenVinoModule, open_session

            return OpenVinoModule(open_session(Path(folder, MODEL)), details["arguments"], details["form"])
