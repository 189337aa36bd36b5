"""Quantization of inputs to uint8: asymmetric per tensor, or symmetric per row."""

import ctypes

import torch

from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import INT8_LARGEST

#: The zero point of uint8 inputs with per-row scales.
ZERO_OF_ROWS = 128

#: Added to a number below 2**22, it leaves the number, rounded half to even, in the lowest bits of the sum.
_SHIFT = 1.5 * 2**23
_BITS_OF_SHIFT = 0x4B400000

#: All zero points as tensors, which PyTorch adds faster than numbers.
_ZERO_POINTS = torch.arange(256.0).unbind()


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
    """Return ``clamp(round(x / scale + zero_point), 0, 255)`` as uint8, in the memory format of fp32 ``x``."""
    # Bits are ordered as the numbers are, infinities included. Integers become bytes several times as fast as floats.
    bits = _steps(x, scale, zero_point).add_(_SHIFT).view(torch.int32)
    return bits.clamp_(_BITS_OF_SHIFT, _BITS_OF_SHIFT + 255).byte()


def to_steps(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return ``to_uint8`` minus the zero point, in fp32."""
    return _steps(x, scale, zero_point).round_().clamp_(0, 255).sub_(zero_point)


def _steps(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Return ``x / scale + zero_point``, rounded as FBGEMM does, so that all kernels of a choice get equal integers.

    FBGEMM multiplies by the reciprocal of the scale in fp32, and adds in the same operation.
    """
    return torch.add(_ZERO_POINTS[zero_point], x, alpha=1.0 / ctypes.c_float(scale).value)


def scales_of_rows(x: torch.Tensor) -> torch.Tensor:
    """Return per-row scales of symmetric integers around ``ZERO_OF_ROWS``, for dynamic quantization per token.

    Args:
        x: shape ``(..., features)``, fp32.

    Returns:
        scales of shape ``(..., 1)``: the row's largest absolute value divided by 127; not finite if the row is not.
    """
    return x.abs().amax(dim=-1, keepdim=True).div_(INT8_LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
