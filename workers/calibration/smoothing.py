"""Factors that smooth the input channels of linear layers, from statistics of each channel."""

import torch

from search_spaces.quantization_map import Smoothing
from workers.backends.rounding.weights import int8_per_channel
from workers.calibration.significant_digits import shortened

#: Candidate migration strengths: how much of the outliers the factors move from the input to the weights. At 0.5, which
#: Xiao et al. use for all layers, the largest input and the largest weight of a channel become equal.
_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Lower bound of a channel's largest absolute value, as in the paper's code, for channels that are always zero.
_SMALLEST = 1e-5


class ChannelStatistics:
    """Extremes and mean squares of each channel of a layer's inputs."""

    def __init__(self, channels: int) -> None:
        #: Inputs seen.
        self.rows = 0
        #: Smallest and largest value of each channel, and 0; shape ``(channels,)``.
        self.low, self.high = torch.zeros(channels), torch.zeros(channels)
        #: Sum of the squares of each channel.
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Add inputs of shape ``(..., channels)``, fp32."""
        rows = x.reshape(-1, x.shape[-1])
        if not len(rows):
            return
        low, high = torch.aminmax(rows, dim=0)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.squares += rows.square().sum(dim=0, dtype=torch.float64)
        self.rows += len(rows)


def smoothing(seen: ChannelStatistics, weight: torch.Tensor, weight_bits: int = 8) -> Smoothing:
    """Return the factors with the least expected error in the layer's outputs; all 1 if no others are better.

    Args:
        seen: statistics of at least one input.
        weight: shape ``(out, in)``.
        weight_bits: bits that the weights will be rounded to.
    """
    weight = weight.detach().to("cpu", torch.float32)
    tried = [(1.0,) * len(seen.low), *(_factors(seen, weight, strength) for strength in _STRENGTHS)]
    factors = min(tried, key=lambda factors: _expected_error(seen, weight, torch.tensor(factors), weight_bits))
    low, high = _bounds(seen, torch.tensor(factors))
    return Smoothing(factors=factors, low=low, high=high)


def _factors(seen: ChannelStatistics, weight: torch.Tensor, strength: float) -> tuple[float, ...]:
    reach = torch.maximum(-seen.low, seen.high).clamp(min=_SMALLEST)
    weights = weight.abs().amax(dim=0).clamp(min=_SMALLEST)
    factors = reach**strength / weights ** (1.0 - strength)
    return tuple(map(shortened, factors.tolist()))


def _bounds(seen: ChannelStatistics, factors: torch.Tensor) -> tuple[float, float]:
    return float((seen.low / factors).min()), float((seen.high / factors).max())


def _expected_error(seen: ChannelStatistics, weight: torch.Tensor, factors: torch.Tensor, bits: int) -> float:
    """Return the expected squared error of all outputs of one input, assuming independent rounding errors.

    Rounding an input adds a uniform error with variance ``step^2 / 12``, multiplied by its weights. Rounding a weight
    adds its rounding error, multiplied by its inputs.
    """
    low, high = _bounds(seen, factors)
    values, scales = int8_per_channel(weight * factors, bits=bits)
    of_inputs = ((high - low) / 255.0) ** 2 / 12.0 * float((weight * factors).square().sum())
    off = values * scales[:, None] / factors - weight
    return of_inputs + float((off.double().square().sum(dim=0) * seen.squares).sum()) / seen.rows
