"""Inputs to uint8: asymmetric, one scale and zero point for the whole tensor."""

import torch

from search_spaces.quantization_map import ActivationRange


def affine_of(x: torch.Tensor) -> tuple[float, int]:
    """Return the scale and zero point of the range ``x`` itself spans: dynamic quantization.

    Raises:
        MapError: if ``x`` is not finite.
    """
    if x.numel() == 0:
        return 1.0, 0
    low, high = torch.aminmax(x)
    return ActivationRange(low=min(low.item(), 0.0), high=max(high.item(), 0.0)).affine_uint8()


def to_uint8(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return ``clamp(round(x / scale) + zero_point, 0, 255)`` as uint8, in the memory format of ``x``."""
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()
