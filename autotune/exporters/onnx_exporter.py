"""The ``onnxruntime`` format: one ONNX file in which every layer runs with its own choice."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.errors import ExportError
from autotune.exporters import libraries
from autotune.exporters.base import Source
from autotune.exporters.calls import Signature, named_outputs, signature
from autotune.exporters.geometry import convolution_geometry
from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.weight_quantization import INT4_GROUP
from workers.task import Batch, Task, splits

#: Names in the folder: the graph, and which of its nodes are which layer.
MODEL, LAYERS = "model.onnx", "layers.json"
#: The first operator set with everything the graph uses; ONNX Runtime reads it from 1.20 on.
_OPSET = 21
#: The operator that holds a layer's place until its own nodes take it; its domain is ours.
_PLACEHOLDER = "autotune::Layer"

_LINEAR = ("bf16", "fp16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only")
_CONV = ("bf16", "fp16", "int8_static", "int8_dynamic")
_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: _LINEAR,
    LayerKind.CONV1D: _CONV,
    LayerKind.CONV2D: _CONV,
    LayerKind.EMBEDDING: ("bf16", "fp16", "int8_weight_only", "int4_weight_only"),
}


class OnnxExporter:
    """Writes a graph whose integers, scales and ranges are ours; ONNX Runtime fuses it as it loads."""

    name = "onnxruntime"
    rounding = (
        "int8 static and dynamic layers hold the same integers and ranges, so only sums differ in their last bits, "
        "which now and then rounds an activation to the neighbouring integer; bf16, int8 and int4 weight-only "
        "layers hold the same weights, but ONNX Runtime multiplies them in fp32 where the search did in bf16"
    )
    libraries = ("onnx", "onnxruntime", "onnxscript", "torch")
    untimed = None

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """See ``Exporter.refuses``."""
        if choice == FULL_PRECISION:
            return None
        if choice.precision is Precision.FP8:
            return "ONNX Runtime's CPU provider has no fp8 products"
        if choice.name not in _CHOICES[layer.kind]:
            return f"ONNX has no {choice.name} operator for {layer.kind} layers"
        return layer.frozen_reason or _shape_refuses(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        """See ``Exporter.refuses_model``."""
        return None

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        """See ``Exporter.write``."""
        calls = signature(source.task, source.model, _batches(source))
        with libraries():
            from autotune.exporters.onnx_graph import fill, save, trace

            flat = _Flat(source.model, calls)
            modules = _hold_places(source.model, source.layers)
            inputs = [f"input_{key}" if isinstance(key, int) else key for key in calls.varying]
            dynamic = [dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in calls.varying.values()]
            graph = trace(flat, calls.tensors, inputs, flat.output_names, dynamic, opset=_OPSET)
            nodes = fill(graph, modules, source.file.quantization_map())
            _check(nodes)
            save(graph, Path(folder, MODEL))
        document = {layer: {"choice": source.file.layers[layer].choice, "nodes": nodes[layer]} for layer in nodes}
        Path(folder, LAYERS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return {"arguments": list(calls.varying), "form": flat.form}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        """See ``Exporter.load``."""
        with libraries():
            from autotune.exporters.onnx_runtime import OnnxModule

            return OnnxModule(Path(folder, MODEL), details["arguments"], details["form"])


class _Flat(nn.Module):
    """The model with its tensors as arguments and results; all else is as in the first call."""

    def __init__(self, model: nn.Module, calls: Signature) -> None:
        super().__init__()
        self.model = model
        self._calls = calls
        with torch.inference_mode():
            #: Form of the model's result, and the names of its tensors.
            self.form, outputs = named_outputs(calls.call(model, calls.tensors))
        self.output_names = list(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(named_outputs(self._calls.call(self.model, tensors))[1].values())


class _Placeholder(nn.Module):
    """One ONNX node in the place of a layer."""

    def __init__(self, name: str, original: nn.Module) -> None:
        super().__init__()
        self._name = name
        # In a list, so that its weights are no parameters of the traced model.
        self._original = [original]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.onnx.ops.symbolic(
            _PLACEHOLDER,
            (x,),
            {"layer": self._name},
            dtype=torch.float32,
            shape=_output_shape(self._original[0], x),
        )
        return result


def _output_shape(module: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (*x.shape[:-1], module.out_features)
    if isinstance(module, nn.Embedding):
        return (*x.shape, module.embedding_dim)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    geometry = convolution_geometry(module)
    begins, ends = torch.tensor(geometry["pads"]).view(2, -1).tolist()
    sizes = (
        (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
        for size, begin, end, dilation, kernel, stride in zip(
            x.shape[2:], begins, ends, geometry["dilations"], geometry["kernel_shape"], geometry["strides"], strict=True
        )
    )
    return (x.shape[0], module.out_channels, *sizes)


def _hold_places(model: nn.Module, layers: Sequence[Layer]) -> dict[str, nn.Module]:
    """Put placeholders wherever a layer hangs that may be quantized; return the layers by name."""
    modules = {layer.name: model.get_submodule(layer.name) for layer in layers if layer.frozen_reason is None}
    placeholders = {id(module): _Placeholder(name, module) for name, module in modules.items()}
    for parent in list(model.modules()):
        for attribute, child in parent._modules.items():
            parent._modules[attribute] = placeholders.get(id(child), child)
    return modules


def _batches(source: Source) -> list[Batch]:
    """Return every batch the task runs its model on, a real evaluation batch first."""
    task: Task = source.task
    timed = [task.latency_batch(size) for size in source.file.measurement.batch_sizes]
    return [*(batch for split in splits(task) for batch in task.evaluation(split)), *task.calibration(), *timed]


def _check(nodes: Mapping[str, Sequence[str]]) -> None:
    """Check that every layer has its nodes in the graph."""
    missing = [layer for layer, names in nodes.items() if not names]
    if missing:
        raise ExportError(
            f"the traced graph lacks the layers {', '.join(missing)}: the model does not use their outputs, or takes "
            "another way for other inputs; pin them to fp32 and run a new job"
        )


def _shape_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    if len(layer.input_shape) < len(layer.weight_shape) and layer.kind in (LayerKind.CONV1D, LayerKind.CONV2D):
        return "ONNX convolves batches only, but this layer gets single samples"
    if choice.precision is not Precision.INT4:
        return None
    features = layer.weight_shape[1]
    if layer.kind is LayerKind.EMBEDDING:
        return f"int4 rows hold two features a byte, but this embedding has {features}" if features % 2 else None
    return f"int4 needs input features divisible by {INT4_GROUP}, but got {features}" if features % INT4_GROUP else None
