"""The base of prepared layers."""

import copy
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.errors import CalibrationError


class PackedLayer(nn.Module):
    """A layer that holds its weights only in a kernel's packed form.

    Packed weights are neither parameters nor buffers, so the layer itself reports its bytes.
    """

    #: Bytes of packed weights, scales, zero points and bias. Data that a kernel library adds internally, such as column
    #: sums or padding of layers narrower than its blocks, is not visible and not counted.
    packed_bytes: int
    #: Packed weights that layers with other choices may hold too, and their bytes; None if nothing is shared.
    shared: tuple[object, int] | None = None
    #: Name of the kernel that computes the layer, if the backend has several.
    kernel: str | None = None
    #: Scale and zero point of the input, in a static int8 layer.
    _affine: tuple[float, int] | None = None

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._summary = original.extra_repr()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; like PyTorch's layers, it accepts its input under the name ``input``."""
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        return super().__call__(*args, **kwargs)

    def dynamic(self) -> Self | None:
        """Return a twin with the same tensors that takes its range from each input; None if the layer is not static."""
        if self._affine is None:
            return None
        twin = copy.copy(self)
        twin._affine = None
        return twin

    def extra_repr(self) -> str:
        """Return the original's text, the kernel and the packed bytes."""
        kernel = f", kernel={self.kernel}" if self.kernel else ""
        return f"{self._summary}{kernel}, packed_bytes={self.packed_bytes}"


def bias_of(original: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    """Return a copy of a layer's bias, or None if it has none."""
    bias = original.bias
    return bias.to(dtype, copy=True) if isinstance(bias, torch.Tensor) else None


def stored_bytes(*tensors: torch.Tensor | None) -> int:
    """Return the total bytes of the tensors that are not None."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes a layer holds, packed or in full precision."""
    if isinstance(module, PackedLayer):
        return module.packed_bytes
    return stored_bytes(*module.parameters(), *module.buffers())


def union_bytes(layers: Iterable[PackedLayer]) -> int:
    """Return the bytes that prepared layers hold together: weights that several share count once."""
    each = {id(layer): layer for layer in layers}.values()
    shared = {id(layer.shared[0]): layer.shared[1] for layer in each if layer.shared is not None}
    own = (layer.packed_bytes - (0 if layer.shared is None else layer.shared[1]) for layer in each)
    return sum(own) + sum(shared.values())


def range_of(choice: LayerChoice, input_range: ActivationRange | None) -> ActivationRange | None:
    """Return the range for preparing a layer: the calibrated one for choices that need calibration, else None.

    Raises:
        CalibrationError: if the choice needs a range and there is none, or the range lacks its factors or moments.
    """
    if not choice.needs_calibration:
        return None
    if input_range is None:
        raise CalibrationError(f"{choice.name} needs the calibrated range of the layer's input; calibrate it first")
    for needs, found, what in (
        (choice.is_smooth, input_range.smoothing, "factors"),
        (choice.is_gptq, input_range.moments, "second moments"),
    ):
        if needs and found is None:
            raise CalibrationError(
                f"{choice.name} needs calibrated {what}; list it in search.choices and calibrate again"
            )
    return input_range
