"""Biases that take off what rounded weights add to outputs on average: Nagel et al., arXiv:1906.04721, section 4.2."""

import copy

import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import in_parts, rounded


def has_correction(layer: Layer) -> bool:
    """Return whether a layer has a bias that can be corrected; one that has none gets none, for formats without it."""
    return layer.kind.is_product and layer.has_bias


def means_of(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> tuple[float, ...] | None:
    """Return the means by which the bias is corrected, or None if it stays as it is.

    GPTQ has no part in it: it already gives to other weights what one was rounded.
    """
    if input_range is None or not choice.rounds_to_nearest or getattr(module, "bias", None) is None:
        return None
    return input_range.means


def corrected(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> nn.Module:
    """Return the layer with the bias that its rounded weights need, or ``module`` itself if that is its own.

    It shares everything but the bias.

    Args:
        module: the full-precision layer.
        choice: how its weights will be stored.
        input_range: of its input; nothing is corrected without its means.
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
    """Return what rounding ``weight``, ``(out, in / groups, ...)``, adds to outputs on average; shape ``(out,)``."""
    means = torch.tensor(calibrated.means, device=weight.device).view(-1, weight.shape[1])  # (groups, in / groups)
    smoothing = calibrated.smoothing if choice.is_smooth else None
    factors = torch.tensor(1.0 if smoothing is None else smoothing.factors, device=weight.device)
    groups = torch.arange(len(weight), device=weight.device) // (len(weight) // len(means))
    parts = []
    for some, group in in_parts(weight, groups):
        off = rounded(some.float() * factors, choice, by_row=False) / factors - some
        parts.append((off.flatten(2).sum(dim=2) if off.dim() > 2 else off).mul_(means[group]).sum(dim=1))
    return torch.cat(parts)
