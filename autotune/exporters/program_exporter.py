"""The ``torch-export`` format: the model quantized by torchao, as a program that runs without the model's code."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from autotune.errors import ExportError
from autotune.exporters import libraries
from autotune.exporters.base import Source
from autotune.exporters.torchao_exporter import TorchAoExporter
from autotune.exporters.torchao_schemes import computed_in
from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from workers.backends.onnx.signature import Signature, signature
from workers.task import splits_with_data

#: Name of the program in the folder.
PROGRAM = "model.pt2"


class ProgramExporter:
    """Traces the model of the format torchao with ``torch.export``, and saves the program with its weights."""

    name = "torch-export"
    rounding = TorchAoExporter.rounding
    libraries = TorchAoExporter.libraries
    untimed = "as traced, the program runs torchao's operators one by one; compile the program to time it"
    as_built = False
    rounds_anew = ()

    def __init__(self) -> None:
        self._torchao = TorchAoExporter()

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return self._torchao.refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return self._torchao.refuses_model(model)

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from autotune.exporters import torchao_layers

            batches = [batch for split in splits_with_data(source.task) for batch in source.task.evaluation(split)]
            calls = signature(source.task, source.model, batches)
            torchao_layers.quantize(source)
            torchao_layers.cast(source.model, computed_in(source))
            program = _trace(source.model, calls)
            for node in program.graph.nodes:
                # Stack traces would reveal folders of this machine.
                node.meta.pop("stack_trace", None)
            torch.export.save(program, Path(folder, PROGRAM))
        return {}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            build_model()  # registers the types of the model's outputs, which the program refers to by name
            loaded: nn.Module = torch.export.load(Path(folder, PROGRAM)).module()
        # The program is always in evaluation mode, and its own ``eval`` raises an error.
        loaded.eval = lambda: loaded  # type: ignore[method-assign]
        return loaded


def _trace(model: nn.Module, calls: Signature) -> torch.export.ExportedProgram:
    positional = tuple(value for key, value in calls.arguments.items() if isinstance(key, int))
    named = {key: value for key, value in calls.arguments.items() if isinstance(key, str)}
    parameters = list(inspect.signature(model.forward).parameters)
    free = {
        parameters[key] if isinstance(key, int) else key: dict.fromkeys(calls.varying.get(key, ()), Dim.AUTO)
        for key in calls.arguments
    }
    shapes = {name: dims or None for name, dims in free.items()}
    try:
        with torch.no_grad():
            return torch.export.export(model, positional, named, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export passes on any error of the model's code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"torch.export cannot trace the model: {reason}. Use the format torchao, which writes a state dict"
        ) from None
