"""The ``torch-export`` format: the model that torchao quantized, as a program that needs none of its Python code."""

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
from workers.task import splits

#: Name of the program in the folder.
PROGRAM = "model.pt2"


class ProgramExporter:
    """Traces what the format torchao holds by ``torch.export``, and saves it with its weights."""

    name = "torch-export"
    rounding = TorchAoExporter.rounding
    libraries = TorchAoExporter.libraries
    untimed = "run as it was traced, torchao computes one operator after the other; compile the program to time it"
    as_built = False

    def __init__(self) -> None:
        self._torchao = TorchAoExporter()

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        return self._torchao.refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return self._torchao.refuses_model(model)

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        with libraries():
            from autotune.exporters import torchao_layers

            batches = [batch for split in splits(source.task) for batch in source.task.evaluation(split)]
            calls = signature(source.task, source.model, batches)
            torchao_layers.quantize(source)
            torchao_layers.cast(source.model, computed_in(source))
            program = _trace(source.model, calls)
            for node in program.graph.nodes:
                # They tell the folders of this machine.
                node.meta.pop("stack_trace", None)
            torch.export.save(program, Path(folder, PROGRAM))
        return {}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        with libraries():
            build_model()  # brings the types of the model's results, which the program only names
            loaded: nn.Module = torch.export.load(Path(folder, PROGRAM)).module()
        # The program is in evaluation mode for good, and refuses to be told so.
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
    except Exception as error:  # torch.export raises whatever the model's code runs into
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"torch.export cannot trace the model: {reason}. The format torchao holds it as a state dict instead"
        ) from None
