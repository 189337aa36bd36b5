"""Exporters: write a map and its model as files for another runtime."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autotune.errors import ExportError
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.errors import unknown
from search_spaces.layer import Layer
from workers.errors import BackendError
from workers.libraries import optional_libraries

if TYPE_CHECKING:
    from autotune.exporters.base import Exporter, Source

#: Format -> module and class of its exporter. Imported on use, so that listing formats stays light.
_EXPORTERS = {
    "onnxruntime": "autotune.exporters.onnx_exporter:OnnxExporter",
    "openvino": "autotune.exporters.openvino_exporter:OpenVinoExporter",
    "torchao": "autotune.exporters.torchao_exporter:TorchAoExporter",
    "torch-export": "autotune.exporters.program_exporter:ProgramExporter",
    "huggingface": "autotune.exporters.huggingface_exporter:HuggingFaceExporter",
    "compressed-tensors": "autotune.exporters.compressed_exporter:CompressedTensorsExporter",
    "modelopt": "autotune.exporters.configurations.modelopt:ModelOptConfiguration",
    "llm-compressor": "autotune.exporters.configurations.llmcompressor:LlmCompressorConfiguration",
    "neural-compressor": "autotune.exporters.configurations.neuralcompressor:NeuralCompressorConfiguration",
    "nncf": "autotune.exporters.configurations.nncf:NncfConfiguration",
}
#: Formats whose runtimes fuse the layers of a fusion group, so that all of them must have one choice.
_FUSING = frozenset({"compressed-tensors", "llm-compressor", "modelopt"})
#: Number of layers that an error message names; it only counts the others.
_NAMED = 5


def exporter_names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return tuple(_EXPORTERS)


def build_exporter(name: str) -> "Exporter":
    """Return the exporter of the format called ``name``.

    Raises:
        ExportError: if there is no such format.
    """
    if name not in _EXPORTERS:
        raise ExportError(unknown("format", name, _EXPORTERS))
    module, _, attribute = _EXPORTERS[name].partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), attribute)()
    return exporter


def check(exporter: "Exporter", source: "Source") -> None:
    """Check that a format can hold the model and express every layer's choice.

    Raises:
        ExportError: if it cannot; the message names the layers and the formats that can.
    """
    whole, refusals = exporter.refuses_model(source.model), dict(_refusals(exporter, source))
    if whole is None and not refusals:
        return
    shown = [f"  {name}: {reason}" for name, reason in list(refusals.items())[:_NAMED]]
    if len(refusals) > _NAMED:
        shown.append(f"  ... and {len(refusals) - _NAMED} more")
    others = (other for other in map(build_exporter, _EXPORTERS) if other.refuses_model(source.model) is None)
    able = ", ".join([*(other.name for other in others if not any(_refusals(other, source))), "map"])
    problem = whole or f"cannot express {len(refusals)} of {len(source.layers)} layers"
    raise ExportError("\n".join([f"the format {exporter.name} {problem}. Formats that can: {able}", *shown]))


@contextmanager
def libraries(extra: str = "export") -> Iterator[None]:
    """Silence the logs and warnings of an extra's packages that are imported and called inside this context.

    Raises:
        ExportError: if a package is not installed, or cannot hold or run the model.
    """
    try:
        with optional_libraries("this", extra):
            yield
    except BackendError as error:
        raise ExportError(str(error)) from error


def _refusals(exporter: "Exporter", source: "Source") -> Iterator[tuple[str, str]]:
    choices, unrolled = source.file.quantization_map().choices, source.unrolled if exporter.as_built else ()
    recovery = source.file.recovery
    fused: dict[str, tuple[Layer, LayerChoice]] = {}
    for layer in source.layers:
        choice = choices[layer.name]
        reason = exporter.refuses(layer, choice)
        if layer.name in unrolled and choice != FULL_PRECISION:
            reason = "the format keeps nn.MultiheadAttention fused, which does not call this layer; pin it to fp32"
        if recovery and reason is None and layer.name in recovery.layers and choice.name in exporter.rounds_anew:
            reason = (
                "the format rounds such weights on a grid of its own, which would lose what recovery learned; export "
                f"trial {recovery.parent}, which was not recovered"
            )
        first, its_choice = fused.setdefault(layer.group, (layer, choice))
        if reason is None and exporter.name in _FUSING and choice != its_choice:
            reason = f"its runtimes fuse it with {first.name}, which is {its_choice.name}; give both one choice"
        if reason is not None:
            yield layer.name, f"{choice.name}: {reason}"
