"""The ``torchao`` format: a state dict of torchao's tensors, for PyTorch models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autotune.exporters import libraries
from autotune.exporters.base import Source
from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.weight_quantization import INT4_GROUP

#: Names in the folder: the state dict, and the ``FqnToConfig`` it was quantized by.
WEIGHTS, CONFIG = "model.safetensors", "fqn_to_config.json"

_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: ("int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only"),
    LayerKind.EMBEDDING: ("int8_weight_only", "int4_weight_only"),
}


class TorchAoExporter:
    """Writes what ``torchao.quantization.quantize_`` makes of the model, by exact layer names."""

    name = "torchao"
    rounding = (
        "all layers hold the same integers and ranges, so only sums differ in their last bits, which now and then "
        "rounds an activation to the neighbouring integer; int8 and int4 weight-only layers are multiplied in fp32 "
        "where the search did in bf16"
    )
    libraries = ("torchao", "safetensors", "torch")
    untimed = "uncompiled, torchao computes one operator after the other; time your own model under torch.compile"

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """See ``Exporter.refuses``."""
        return None if choice == FULL_PRECISION else refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        """See ``Exporter.refuses_model``."""
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        """See ``Exporter.write``."""
        with libraries():
            from autotune.exporters import torchao_layers

            config = torchao_layers.quantize(source.model, source.layers, source.file.quantization_map())
            torchao_layers.save(source.model, config, Path(folder, WEIGHTS), Path(folder, CONFIG))
        return {}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        """See ``Exporter.load``."""
        with libraries():
            from autotune.exporters import torchao_layers

            return torchao_layers.load(build_model(), Path(folder, WEIGHTS))


def refusal(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why torchao cannot express a choice other than full precision, or None if it can."""
    if choice.precision in (Precision.BF16, Precision.FP16):
        return f"torchao quantizes weights; it has no {choice.precision} layer between fp32 ones"
    if choice.precision is Precision.FP8:
        return "torchao's fp8 kernels need a GPU, on which this version measures nothing"
    if choice.name not in _CHOICES.get(layer.kind, ()):
        return f"torchao has no {choice.name} tensor for {layer.kind} layers"
    features = layer.weight_shape[1]
    if choice.precision is Precision.INT4 and layer.kind is LayerKind.LINEAR and features % INT4_GROUP:
        return f"int4 needs input features divisible by {INT4_GROUP}, but got {features}"
    return layer.frozen_reason
