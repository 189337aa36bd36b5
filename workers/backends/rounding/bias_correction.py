"""Bias correction for the mean output error of rounded weights: Nagel et al., arXiv:1906.04721, section 4.2."""

import copy

import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import in_parts, rounded


def has_correction(layer: Layer) -> bool:
    """Return whether a layer has a correctable bias; a layer without a bias gets none, because formats may lack it."""
    return layer.kind.is_product and layer.has_bias


def means_of(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> tuple[float, ...] | None:
    """Return the channel means for correcting the bias, or None if it is not corrected.

    GPTQ needs no correction, because other weights already compensate for each rounding error.
    """
    if input_range is None or not choice.rounds_to_nearest or getattr(module, "bias", None) is None:
        return None
    return input_range.means


def corrected(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> nn.Module:
    """Return the layer with a corrected bias, or ``module`` itself if nothing is corrected.

    The returned layer shares everything but the bias with ``module``.

    Args:
        module: the full-precision layer.
        choice: the choice that its weights will be rounded for.
        input_range: range of its input; without channel means, nothing is corrected.
    """
    if input_range is None or means_of(module, choice, input_range) is None:
        return module
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    assert module.bias is not None
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    added = _added(module.weight.detach(), choice, input_range)
    twin.bias = nn.Parameter(module.bias.detach() - added.to(module.bias.dtype), requires_grad=False)
    return twin


def _added(weight: torch.Tensor, choice: LayerChoice, calibrated: ActivationRange) -> torch.Tensor:
    """Return the mean output error of rounding ``weight``, ``(out, in / groups, ...)``; shape ``(out,)``."""
    means = torch.tensor(calibrated.means, device=weight.device).view(-1, weight.shape[1])  # (groups, in / groups)
    smoothing = calibrated.smoothing if choice.is_smooth else None
    factors = torch.tensor(1.0 if smoothing is None else smoothing.factors, device=weight.device)
    groups = torch.arange(len(weight), device=weight.device) // (len(weight) // len(means))
    parts = []
    for some, group in in_parts(weight, groups):
        off = rounded(some.float() * factors, choice, by_row=False) / factors - some
        parts.append((off.flatten(2).sum(dim=2) if off.dim() > 2 else off).mul_(means[group]).sum(dim=1))
    return torch.cat(parts)
