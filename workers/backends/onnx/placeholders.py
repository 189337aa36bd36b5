"""Placeholders: trace a model with a single node in place of each layer call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from search_spaces.layer import Layer
from workers.backends.onnx.choices import has_place
from workers.backends.onnx.geometry import convolution_geometry
from workers.backends.onnx.signature import Signature, named_outputs
from workers.model.prepared import describe

#: Domain of the placeholder operator, which the layer's own nodes replace later.
DOMAIN = "autotune"


class Flat(nn.Module):
    """The model with its tensors as positional arguments and results; other arguments are fixed to the first call's."""

    def __init__(self, model: nn.Module, calls: Signature) -> None:
        super().__init__()
        self.model = model
        self._calls = calls
        with torch.inference_mode():
            #: Form of the model's result, and the names of its tensors.
            self.form, outputs = named_outputs(calls.call(model, calls.tensors))
        self.output_names = list(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors of the model's result."""
        return tuple(named_outputs(self._calls.call(self.model, tensors))[1].values())


class _Placeholder(nn.Module):
    """A single ONNX node in place of a layer."""

    def __init__(self, name: str, original: nn.Module) -> None:
        super().__init__()
        self._name = name
        # In a list, so that PyTorch does not register its weights as parameters of the traced model.
        self._original = [original]
        describe(self, original)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the layer's own name for it
        result: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Layer",
            (input,),
            {"layer": self._name},
            dtype=torch.float32,
            shape=_output_shape(self._original[0], input),
        )
        return result


def _output_shape(module: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (*x.shape[:-1], module.out_features)
    if isinstance(module, nn.Embedding):
        return (*x.shape, module.embedding_dim)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    geometry = convolution_geometry(module)
    begins, ends = geometry["pads"][: len(x.shape) - 2], geometry["pads"][len(x.shape) - 2 :]
    sizes = (
        (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
        for size, begin, end, dilation, kernel, stride in zip(
            x.shape[2:], begins, ends, geometry["dilations"], geometry["kernel_shape"], geometry["strides"], strict=True
        )
    )
    return (x.shape[0], module.out_channels, *sizes)


@contextmanager
def places_held(model: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
    """Replace every layer that may be quantized by a placeholder while the context is open."""
    modules = {layer.name: model.get_submodule(layer.name) for layer in layers if has_place(layer)}
    placeholders = {id(module): _Placeholder(name, module) for name, module in modules.items()}
    slots = [
        (parent._modules, attribute, child)
        for parent in list(model.modules())
        for attribute, child in parent._modules.items()
        if id(child) in placeholders
    ]
    try:
        for children, attribute, child in slots:
            children[attribute] = placeholders[id(child)]
        yield
    finally:
        for children, attribute, child in slots:
            children[attribute] = child
