"""The ``compressed-tensors`` format: a checkpoint that transformers, compressed-tensors and vLLM load."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autotune.exporters import compressed_schemes, libraries, pretrained
from autotune.exporters.base import Source
from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer


class CompressedTensorsExporter:
    """Writes compressed weights with their scales, and a ``config.json`` that names each layer's scheme."""

    name = "compressed-tensors"
    rounding = (
        "int8 layers hold the same integers, and static ones the same ranges; dynamic ranges are per token, as in "
        "vLLM, whereas the search used one per tensor; int4 weights are rounded again, to groups without zero points; "
        "weight-only layers multiply in fp32, whereas the search multiplied in bf16"
    )
    libraries = ("compressed-tensors", "transformers", "safetensors", "torch")
    untimed = "compressed-tensors widens weights to fp32 and simulates int8 inputs; time the checkpoint in vLLM"
    as_built = True
    rounds_anew = ("int4_weight_only", "int4_weight_only_gptq")

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return compressed_schemes.refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return pretrained.refusal(model)

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from autotune.exporters import compressed_layers

            with pretrained.no_progress_bar():
                quantization = compressed_layers.compress(source.model, source.file.quantization_map())
            details = pretrained.save(source.model, folder)
        config = Path(folder, "config.json")
        document = json.loads(config.read_bytes())
        if quantization["config_groups"]:
            document["quantization_config"] = quantization
        config.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return details

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            return pretrained.load(folder, details)
