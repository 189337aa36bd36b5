"""The weights that a choice represents exactly: learned integers, and full-precision weights that round to them.

A layer is recovered by replacing its weights with weights on the grid of its choice. Backends and exporters then round
them as they round any weights, and arrive at the learned integers.
"""

from dataclasses import dataclass

import torch

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import INT4_GROUP, int4_per_group, int8_per_channel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The integers of one layer's weights, and what they stand for: ``(steps * scales + zeros) / factors``.

    A row has one scale: the weights of an output or, in int4, of a group of its inputs.
    """

    #: Weights of the layer, shape ``(out, ...)``, and the same times ``factors``, shape ``(rows, weights)``.
    original: torch.Tensor
    rows: torch.Tensor
    #: Smallest and largest integer.
    low: int
    high: int
    #: One per row, shape ``(rows, 1)``.
    scales: torch.Tensor
    zeros: torch.Tensor
    #: Factors of the input channels, shape ``(in,)``; None if the choice does not smooth.
    factors: torch.Tensor | None
    #: Integers to which the choice rounds the weights, shape ``(rows, weights)``.
    rounded: torch.Tensor
    #: Integers that must be those of nearest rounding, because they set the scale of their row; same shape.
    fixed: torch.Tensor
    #: Whether a weight's integer depends on other rows too, as in GPTQ.
    compensates: bool

    @classmethod
    def of(cls, weight: torch.Tensor, choice: LayerChoice, calibrated: ActivationRange | None) -> "Grid":
        """Return the grid of a layer's weights.

        Args:
            weight: weights in full precision, shape ``(out, ...)``.
            choice: a choice with integer weights.
            calibrated: range of the layer's input, with factors or moments if the choice needs them.
        """
        device = weight.device
        weight = weight.detach().to("cpu", torch.float32)  # where bits do not depend on the device
        smoothing = calibrated.smoothing if calibrated is not None and choice.is_smooth else None
        factors = None if smoothing is None else torch.tensor(smoothing.factors)
        weights = weight if factors is None else weight * factors
        if choice.precision is Precision.INT4:
            moments = calibrated.moments if calibrated is not None and choice.is_gptq else None
            values, scales, zeros = int4_per_group(weights, moments)
            rows, integers, low, high = weights.reshape(-1, INT4_GROUP), values - 8, -8, 7
            # Without a weight above zero, the scale of rounded weights may differ from that of the weights.
            fixed = _marked(rows, rows.argmin(dim=1), rows.argmax(dim=1)) | (rows < 0.0).all(dim=1, keepdim=True)
        else:
            scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
            integers, scales = int8_per_channel(weights, scale_dtype, bits=choice.weight_bits)
            rows, high = weights.flatten(1), 2 ** (choice.weight_bits - 1) - 1
            low, zeros = -high, torch.zeros_like(scales)
            fixed = _marked(rows, rows.abs().argmax(dim=1))
        return cls(
            original=weight.to(device),
            rows=rows.to(device),
            low=low,
            high=high,
            scales=scales.float().reshape(-1, 1).to(device),
            zeros=zeros.float().reshape(-1, 1).to(device),
            factors=None if factors is None else factors.to(device),
            rounded=integers.reshape(rows.shape).float().to(device),
            fixed=fixed.to(device),
            compensates=choice.is_gptq,
        )

    def steps(self) -> torch.Tensor:
        """Return the weights in steps of the grid, not rounded; shape ``(rows, weights)``."""
        return (self.rows - self.zeros) / self.scales

    def start(self) -> torch.Tensor:
        """Return the integers from which to learn: those of the choice, and of nearest rounding where ``fixed``."""
        nearest = self.steps().round().clamp(self.low, self.high)
        return torch.where(self.fixed, nearest, self.rounded)

    def multiplied(self, steps: torch.Tensor) -> torch.Tensor:
        """Return what ``steps`` stand for, times ``factors``, in the shape of the layer's weights; differentiable."""
        return (steps * self.scales + self.zeros).reshape(self.original.shape)

    def weight(self, steps: torch.Tensor) -> torch.Tensor:
        """Return what ``steps`` stand for, in the shape of the layer's weights; differentiable."""
        weights = self.multiplied(steps)
        return weights if self.factors is None else weights / self.factors

    def rounding_to(self, steps: torch.Tensor) -> torch.Tensor:
        """Return weights in full precision that the choice rounds to the integers ``steps``.

        Rows that need no other weights for that keep theirs.
        """
        kept = self.fixed.all(dim=1, keepdim=True)
        if not self.compensates:
            kept = kept | (steps == self.rounded).all(dim=1, keepdim=True)
        kept = kept.expand_as(steps).reshape(self.original.shape)
        return torch.where(kept, self.original, self.weight(steps))


def _marked(rows: torch.Tensor, *columns: torch.Tensor) -> torch.Tensor:
    """Return a mask in the shape of ``rows`` with one mark per row and tensor of columns."""
    marks = torch.zeros(rows.shape, dtype=torch.bool)
    for column in columns:
        marks.scatter_(1, column[:, None], True)
    return marks
