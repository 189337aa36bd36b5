"""The range of one input, taken at run time: dynamic quantization."""

import torch

from search_spaces.quantization_map import ActivationRange


def affine_of(x: torch.Tensor) -> tuple[float, int]:
    """Return the uint8 scale and zero point of the range ``x`` itself spans: dynamic quantization."""
    low, high = torch.aminmax(x)
    return ActivationRange(low=min(low.item(), 0.0), high=max(high.item(), 0.0)).affine_uint8()
