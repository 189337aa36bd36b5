"""Layers that compute in floating point what a kernel computes in integers, on any device and whatever the backend."""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from search_spaces.choice import LayerChoice
from search_spaces.discovery import kind_of
from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.activations import ZERO_OF_ROWS, affine_of, scales_of_rows, to_steps
from workers.backends.rounding.bias_correction import corrected
from workers.recovery.grid import Grid
from workers.recovery.learned import LearnedLayer


def can_learn(module: nn.Module, choice: LayerChoice) -> bool:
    """Return whether the weights of a layer are integers of a product, which can be learned."""
    kind = kind_of(module)
    return choice.has_integer_weights and kind is not None and kind.is_product


class _FakeQuantized(nn.Module):
    """A linear or convolutional layer with rounded inputs; its weights are given with each call."""

    def __init__(
        self, module: nn.Module, choice: LayerChoice, calibrated: ActivationRange | None, factors: torch.Tensor | None
    ) -> None:
        super().__init__()
        # In a list, so that PyTorch does not register the original's weights as parameters of this layer.
        self._original = [module]
        self._round = _rounding(choice, calibrated)
        self._divide = None if factors is None else factors.reciprocal()

    def _product(self, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the product of the rounded input, divided by the factors, with multiplied weights, plus bias."""
        (original,) = self._original
        x = x if self._divide is None else x * self._divide
        parameters = {"weight": weights} if bias is None else {"weight": weights, "bias": bias}
        product: torch.Tensor = functional_call(original, parameters, (self._round(x),))
        return product


class FixedLayer(_FakeQuantized):
    """A layer with the integers of its choice, or with those that it learned."""

    def __init__(
        self,
        module: nn.Module,
        choice: LayerChoice,
        calibrated: ActivationRange | None,
        learned: LearnedLayer | None = None,
    ) -> None:
        """Take the full-precision layer, its choice, the range of its input, and what it learned."""
        grid = _grid(module, choice, calibrated)
        super().__init__(module, choice, calibrated, grid.factors)
        steps, self._bias = grid.rounded, _bias(module, choice, calibrated)
        if learned is not None:
            steps = learned.steps.to(steps.device).float().reshape(steps.shape)
            self._bias = None if learned.bias is None else learned.bias.to(steps.device)
        self._weights = grid.multiplied(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer's kernel returns, up to rounding in the last bits."""
        return self._product(x, self._weights, self._bias)


class LearningLayer(_FakeQuantized):
    """A layer whose weights and bias are learned; gradients pass through the rounding."""

    def __init__(self, module: nn.Module, choice: LayerChoice, calibrated: ActivationRange | None) -> None:
        """Start from the integers that a choice rounds the layer's weights to, and from its corrected bias.

        Args:
            module: the full-precision layer.
            choice: its choice; see ``can_learn``.
            calibrated: range of its input, which static choices need.
        """
        grid = _grid(module, choice, calibrated)
        super().__init__(module, choice, calibrated, grid.factors)
        #: Grid of the weights, on their device.
        self.grid = grid
        start, exact = self.grid.start(), self.grid.steps()
        # Weights start where they are in full precision, so that the nearer integer is the easier one to reach.
        begins = torch.where(start == exact.round().clamp(self.grid.low, self.grid.high), exact, start)
        #: Weights in steps of the grid, shape ``(rows, weights)``; what is learned.
        self.latent = nn.Parameter(torch.where(self.grid.fixed, start, begins).clamp(self.grid.low, self.grid.high))
        bias = _bias(module, choice, calibrated)
        #: The bias, shape ``(out,)``; None if the layer has none.
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer's kernel returns, up to rounding in the last bits."""
        latent = torch.where(self.grid.fixed, self.latent.detach(), self.latent)
        steps = latent + (self._integers() - latent).detach()
        return self._product(x, self.grid.multiplied(steps), self.bias)

    def learned(self) -> LearnedLayer:
        """Return the integers and the bias as they are now, on the CPU."""
        steps = self._integers().to("cpu", torch.int8).reshape(self.grid.original.shape)
        return LearnedLayer(steps=steps, bias=None if self.bias is None else self.bias.detach().cpu().clone())

    def _integers(self) -> torch.Tensor:
        return self.latent.detach().round().clamp(self.grid.low, self.grid.high)


def _grid(module: nn.Module, choice: LayerChoice, calibrated: ActivationRange | None) -> Grid:
    assert isinstance(module.weight, torch.Tensor)
    return Grid.of(module.weight, choice, calibrated)


def _bias(module: nn.Module, choice: LayerChoice, calibrated: ActivationRange | None) -> torch.Tensor | None:
    """Return the corrected bias of a layer; None if it has none."""
    bias = getattr(corrected(module, choice, calibrated), "bias", None)
    return None if bias is None else bias.detach()


def _rounding(choice: LayerChoice, calibrated: ActivationRange | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that rounds inputs as the choice does; gradients pass where nothing is clipped."""
    if not choice.needs_int8_products:
        return lambda x: x
    if choice.is_per_token:

        def per_token(x: torch.Tensor) -> torch.Tensor:
            scales = scales_of_rows(x.detach())
            return x + (to_steps(x.detach() / scales, 1.0, ZERO_OF_ROWS) * scales - x.detach())

        return per_token
    fixed = None
    if choice.needs_calibration:
        assert calibrated is not None
        smoothing = calibrated.smoothing if choice.is_smooth else None
        fixed = (calibrated if smoothing is None else smoothing.range).affine_uint8()

    def per_tensor(x: torch.Tensor) -> torch.Tensor:
        scale, zero_point = fixed or affine_of(x.detach())
        kept = x.clamp(-zero_point * scale, (255 - zero_point) * scale)
        return kept + (to_steps(x.detach(), scale, zero_point) * scale - kept.detach())

    return per_tensor
