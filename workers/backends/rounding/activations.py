"""Quantization of inputs to uint8: asymmetric per tensor, or symmetric per row."""

import torch

from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import INT8_LARGEST

#: The zero point of uint8 inputs with per-row scales.
ZERO_OF_ROWS = 128


def affine_of(x: torch.Tensor) -> tuple[float, int]:
    """Return the scale and zero point of the range that ``x`` spans, for dynamic quantization.

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


def to_steps(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return ``clamp(round(x / scale), -zero_point, 255 - zero_point)`` in fp32: ``to_uint8`` minus the zero point."""
    return torch.round(x * (1.0 / scale)).clamp_(-zero_point, 255 - zero_point)


def scales_of_rows(x: torch.Tensor) -> torch.Tensor:
    """Return per-row scales of symmetric integers around ``ZERO_OF_ROWS``, for dynamic quantization per token.

    Args:
        x: shape ``(..., features)``, fp32.

    Returns:
        scales of shape ``(..., 1)``: the row's largest absolute value divided by 127; not finite if the row is not.
    """
    return x.abs().amax(dim=-1, keepdim=True).div_(INT8_LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
