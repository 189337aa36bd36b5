"""The ``huggingface`` format: a ``save_pretrained`` folder that transformers loads, quantized by torchao."""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.exporters import libraries
from autotune.exporters.base import Source
from autotune.exporters.safetensors_header import sort_header
from autotune.exporters.torchao_exporter import TorchAoExporter, refusal
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer


class HuggingFaceExporter:
    """Writes a checkpoint whose ``config.json`` holds the ``FqnToConfig`` of the map."""

    name = "huggingface"
    rounding = TorchAoExporter.rounding
    libraries = ("transformers", *TorchAoExporter.libraries)
    untimed = TorchAoExporter.untimed

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """See ``Exporter.refuses``."""
        if choice.needs_calibration:
            return "transformers drops static ranges when it loads torchao weights; the format torchao keeps them"
        return None if choice == FULL_PRECISION else refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        """See ``Exporter.refuses_model``."""
        # By name, because nothing but the model itself says whether transformers is worth importing.
        if any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
            return None
        return f"is for models of transformers, but the task builds a {type(model).__name__}"

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        """See ``Exporter.write``."""
        with libraries():
            from transformers import PreTrainedModel, TorchAoConfig
            from transformers.quantizers.auto import AutoHfQuantizer

            from autotune.exporters import torchao_layers

            model = source.model
            assert isinstance(model, PreTrainedModel)
            config = torchao_layers.quantize(model, source.layers, source.file.quantization_map())
            if config.fqn_to_config:
                quantization = TorchAoConfig(quant_type=config, include_input_output_embeddings=True)
                model.config.quantization_config = quantization
                model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
            with _no_progress_bar():
                model.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            sort_header(weights)
        return {"class": type(model).__name__}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        """See ``Exporter.load``."""
        with libraries():
            import transformers

            with _no_progress_bar():
                loaded: nn.Module = getattr(transformers, details["class"]).from_pretrained(
                    folder, dtype=torch.float32, local_files_only=True
                )
        return loaded


def _no_progress_bar() -> contextlib.redirect_stderr[io.StringIO]:
    # transformers turns its bars off for the whole process only.
    return contextlib.redirect_stderr(io.StringIO())
