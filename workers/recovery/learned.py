"""What recovery learned about the layers of a map, and its place in a model and in a file."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.model.prepared import slots
from workers.recovery.grid import Grid

#: Ends of the names of tensors in a file, after the name of the layer.
_STEPS, _BIAS = ".steps", ".bias"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedLayer:
    """Integers and bias of one layer."""

    #: Integers of the weights, int8, in the shape of the weights.
    steps: torch.Tensor
    #: Bias, shape ``(out,)``, fp32; None if the layer has none.
    bias: torch.Tensor | None

    def replacing(self, module: nn.Module, choice: LayerChoice, calibrated: ActivationRange | None) -> nn.Module:
        """Return a layer that shares everything with ``module`` but the learned weights and bias.

        Args:
            module: the full-precision layer.
            choice: the choice that the integers are for.
            calibrated: range of its input; see ``Grid.of``.
        """
        assert isinstance(module.weight, torch.Tensor)
        # Factors and moments are on the CPU.
        grid = Grid.of(module.weight.cpu(), choice, calibrated)
        twin = copy.copy(module)
        twin._parameters = dict(module._parameters)
        weight = grid.rounding_to(self.steps.float().reshape(grid.rounded.shape))
        own = module.weight
        # In its memory format, because kernels follow it.
        twin.weight = nn.Parameter(torch.empty_like(own).copy_(weight), requires_grad=False)
        if self.bias is not None:
            twin.bias = nn.Parameter(self.bias.to(own.device, copy=True), requires_grad=False)
        return twin


def install(model: nn.Module, quantization: QuantizationMap, learned: Mapping[str, LearnedLayer]) -> Callable[[], None]:
    """Replace layers of a full-precision model, in place, with what was learned for a map.

    Returns:
        a function that puts the model's own layers back.

    Args:
        model: the full-precision model that the map was made for.
        quantization: the map, with its ranges.
        learned: layer name -> what was learned.

    Raises:
        MapError: if the model has no such layer, or its weights have another shape.
    """
    originals = {}
    for name, of_layer in learned.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise MapError(f"the learned weights are for another model: this one has no layer {name!r}") from None
        shape = tuple(getattr(module.weight, "shape", ()))
        if shape != tuple(of_layer.steps.shape):
            raise MapError(
                f"the learned weights are for another model: layer {name!r} has weights of shape {shape}, but the "
                f"learned ones have {tuple(of_layer.steps.shape)}"
            )
        originals[name] = module
    found = slots(model, originals)
    for name, places in found.items():
        choice, calibrated = quantization.choices[name], quantization.ranges.get(name)
        replaced = learned[name].replacing(originals[name], choice, calibrated)
        for children, attribute in places:
            children[attribute] = replaced

    def undo() -> None:
        for name, places in found.items():
            for children, attribute in places:
                children[attribute] = originals[name]

    return undo


def encoded(learned: Mapping[str, LearnedLayer]) -> bytes:
    """Return a safetensors file of what was learned; equal layers give equal bytes."""
    tensors = {}
    for name, of_layer in learned.items():
        tensors[name + _STEPS] = of_layer.steps.contiguous()
        if of_layer.bias is not None:
            tensors[name + _BIAS] = of_layer.bias.contiguous()
    return save(tensors)


def decoded(data: bytes) -> dict[str, LearnedLayer]:
    """Return what a file of ``encoded`` holds.

    Raises:
        MapError: if it is no such file.
    """
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise MapError(f"the learned weights cannot be read: {error}") from None
    names = [name.removesuffix(_STEPS) for name in tensors if name.endswith(_STEPS)]
    unknown = tensors.keys() - {name + end for name in names for end in (_STEPS, _BIAS)}
    if unknown or any(tensors[name + _STEPS].dtype != torch.int8 for name in names):
        raise MapError(f"the learned weights cannot be read: {min(unknown, default='a tensor')} is not of this format")
    return {name: LearnedLayer(steps=tensors[name + _STEPS], bias=tensors.get(name + _BIAS)) for name in names}
