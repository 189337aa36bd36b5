"""Compress a model with compressed-tensors, using our integers and ranges wherever its schemes can hold them."""

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
from torch import nn

from autotune.exporters import compressed_schemes
from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange, QuantizationMap, SecondMoments
from workers.backends.rounding import gptq
from workers.backends.rounding.bias_correction import means_of
from workers.backends.rounding.weights import INT4_GROUP, int8_per_channel

#: Candidate scales of an int4 group, relative to the one that covers the largest weight.
_CUTS = [1.0 - 0.04 * step for step in range(10)]


def compress(model: nn.Module, quantization: QuantizationMap) -> dict[str, Any]:
    """Compress ``model`` in place and return its ``quantization_config``."""
    groups = compressed_schemes.groups(quantization.choices)
    targets = {target for group in groups.values() for target in group["targets"]}
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    config = QuantizationConfig.model_validate(
        {
            "config_groups": groups,
            "format": compressed_schemes.model_format(groups.values()),
            # vLLM requires each linear layer in a group or in this list.
            "ignore": [name for name in linear if name not in targets],
            "quantization_status": QuantizationStatus.FROZEN,
        }
    )
    apply_quantization_config(model, config, show_progress=False)
    for name, choice in quantization.choices.items():
        if choice != FULL_PRECISION:
            module = model.get_submodule(name)
            tensors = _tensors(module, choice, quantization.moments(name))
            _fill(module, tensors | _bias(module, choice, quantization.ranges.get(name), tensors["weight"]))
        if choice.activation is ActivationMode.STATIC:
            scale, zero_point = quantization.ranges[name].affine_uint8()
            static = {"input_scale": torch.tensor([scale]), "input_zero_point": torch.tensor([zero_point - 128])}
            _fill(model.get_submodule(name), static)
    ModelCompressor(quantization_config=config).compress_model(model)
    document: dict[str, Any] = config.model_copy(
        update={"quantization_status": QuantizationStatus.COMPRESSED}
    ).model_dump(mode="json", exclude_none=True)
    return document


def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for attribute, tensor in tensors.items():
        module.get_parameter(attribute).data.copy_(tensor)


def _tensors(module: nn.Module, choice: LayerChoice, moments: SecondMoments | None) -> dict[str, torch.Tensor]:
    """Return weights that the library rounds to exactly our integers, and the scales it rounds them with."""
    weight = module.get_parameter("weight").detach()
    if choice.precision is Precision.INT4:
        return _int4(weight, moments)
    scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
    values, scales = int8_per_channel(weight, scale_dtype, bits=choice.weight_bits)
    scale = scales.float()[:, None]
    return {"weight": values * scale, "weight_scale": scale}


def _bias(
    module: nn.Module, choice: LayerChoice, known: ActivationRange | None, rounded: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the bias corrected for the library's own rounding; empty if biases are not corrected."""
    assert isinstance(module, nn.Linear)
    means = means_of(module, choice, known)
    if means is None:
        return {}
    return {"bias": module.bias.detach() - (rounded - module.weight.detach()) @ torch.tensor(means)}


def _int4(weight: torch.Tensor, moments: SecondMoments | None) -> dict[str, torch.Tensor]:
    """Return weights rounded again to the format's symmetric groups, with scales that bf16 can represent.

    Candidate scales per group range from one that clips no weight to some that clip the largest; the one with the
    smallest squared error is used. Otherwise groups without zero points would be coarser than ours.
    """
    grouped = weight.view(len(weight), -1, INT4_GROUP)
    widest = grouped.abs().amax(dim=-1, keepdim=True) / 7.0
    scales = [(widest * cut).to(torch.bfloat16).float().clamp(min=torch.finfo(torch.float32).tiny) for cut in _CUTS]
    rounded = torch.stack([torch.clamp(torch.round(grouped / scale), -8, 7) * scale for scale in scales])
    best = (rounded - grouped).square().sum(dim=-1, keepdim=True).argmin(dim=0)
    scale = torch.stack(scales).gather(0, best[None])[0, ..., 0]
    if moments is None:
        return {"weight": rounded.gather(0, best.expand_as(grouped)[None])[0].flatten(1), "weight_scale": scale}
    steps = gptq.rounded_steps(weight, scale, torch.zeros_like(scale), INT4_GROUP, moments)
    return {"weight": (steps.view_as(grouped) * scale[..., None]).flatten(1), "weight_scale": scale}
