"""The ``torchao`` format: a state dict of torchao's tensors, for PyTorch models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autotune.exporters import libraries
from autotune.exporters.base import Source
from autotune.exporters.torchao_schemes import computed_in, refusal
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer

#: File names in the folder: the state dict, and the ``FqnToConfig`` that quantized it.
WEIGHTS, CONFIG = "model.safetensors", "fqn_to_config.json"


class TorchAoExporter:
    """Writes the result of ``torchao.quantization.quantize_``, applied by exact layer names."""

    name = "torchao"
    rounding = (
        "all layers hold the same integers and ranges, so only sums differ in their last bits, which occasionally "
        "rounds an activation to the neighbouring integer; int8 and int4 weight-only layers multiply in fp32, "
        "whereas the search multiplied in bf16"
    )
    libraries = ("torchao", "safetensors", "torch")
    untimed = "without compilation torchao runs operators one by one; time your own model under torch.compile"
    as_built = False
    rounds_anew = ()

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return None if choice == FULL_PRECISION else refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from autotune.exporters import torchao_layers

            config = torchao_layers.quantize(source)
            torchao_layers.save(source.model, config, Path(folder, WEIGHTS), Path(folder, CONFIG))
        return {"computed_in": computed_in(source)}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            from autotune.exporters import torchao_layers

            model = torchao_layers.load(build_model(), Path(folder, WEIGHTS))
            return torchao_layers.cast(model, details["computed_in"])
