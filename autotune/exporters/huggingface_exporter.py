"""The ``huggingface`` format: a ``save_pretrained`` folder that transformers loads, quantized by torchao."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autotune.exporters import libraries, pretrained
from autotune.exporters.base import Source
from autotune.exporters.torchao_exporter import TorchAoExporter
from autotune.exporters.torchao_schemes import COMPUTED_IN, refusal
from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice
from search_spaces.layer import Layer


class HuggingFaceExporter:
    """Writes a checkpoint whose ``config.json`` holds the ``FqnToConfig`` of the map."""

    name = "huggingface"
    rounding = TorchAoExporter.rounding
    libraries = ("transformers", *TorchAoExporter.libraries)
    untimed = TorchAoExporter.untimed
    as_built = True
    rounds_anew = TorchAoExporter.rounds_anew

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if choice.activation is ActivationMode.STATIC:
            return "transformers drops static ranges when it loads torchao weights; use the format torchao"
        if choice.precision in COMPUTED_IN:
            return f"transformers does not cast the inputs of a {choice.precision} layer; use the format torchao"
        return None if choice == FULL_PRECISION else refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return pretrained.refusal(model)

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from transformers import PreTrainedModel, TorchAoConfig
            from transformers.quantizers.auto import AutoHfQuantizer

            from autotune.exporters import torchao_layers

            model = source.model
            assert isinstance(model, PreTrainedModel)
            config = torchao_layers.quantize(source)
            if config.fqn_to_config:
                quantization = TorchAoConfig(quant_type=config, include_input_output_embeddings=True)
                model.config.quantization_config = quantization
                model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
            return pretrained.save(model, folder)

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            return pretrained.load(folder, details)
