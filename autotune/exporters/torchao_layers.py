"""Quantize a model by torchao, with our integers and ranges wherever its tensors can hold them."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchao.core.config import AOBaseConfig, config_to_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

from autotune.exporters.safetensors_header import sort_header
from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.backends.weight_quantization import INT4_GROUP, affine_per_row, int4_per_group, int8_per_channel

#: PyTorch has the type, but its stubs do not.
_INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]
#: Activations as our kernels take them: one asymmetric range for the tensor; weights with one scale a row.
_W8A8: dict[str, Any] = {
    "granularity": [PerTensor(), PerRow()],
    "act_mapping_type": MappingType.ASYMMETRIC,
    "set_inductor_config": False,
}


def quantize(model: nn.Module, layers: Sequence[Layer], quantization: QuantizationMap) -> FqnToConfig:
    """Quantize ``model`` in place and return the configuration that did it, without the static scales.

    They are tensors, which no JSON file can hold; the state dict has them.
    """
    choices = {layer: quantization.choices[layer.name] for layer in layers}
    quantized = {layer: choice for layer, choice in choices.items() if choice != FULL_PRECISION}
    ranges = quantization.ranges
    complete = OrderedDict((layer.name, _config(layer, c, ranges.get(layer.name))) for layer, c in quantized.items())
    integers = {layer.name: _integers(model, layer, choice) for layer, choice in quantized.items()}
    quantize_(model, FqnToConfig(complete), filter_fn=None)
    for name, tensors in integers.items():
        weight = model.get_submodule(name).weight
        for attribute, tensor in tensors.items():
            # torchao's own integers have another range, and zero points that are integers.
            setattr(weight, attribute, tensor.reshape(getattr(weight, attribute).shape))
    return FqnToConfig(OrderedDict((layer.name, _config(layer, choice, None)) for layer, choice in quantized.items()))


def save(model: nn.Module, config: FqnToConfig, weights: Path, configuration: Path) -> None:
    """Write the state dict as safetensors, and the configuration as JSON."""
    tensors, metadata = flatten_tensor_state_dict(model.state_dict())
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Tied weights share their bytes, which safetensors refuses.
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    save_file(tensors, weights, metadata=metadata)
    sort_header(weights)
    configuration.write_text(json.dumps(config_to_dict(config), indent=2) + "\n", encoding="utf-8")


def load(model: nn.Module, weights: Path) -> nn.Module:
    """Put the saved tensors into the full-precision ``model`` and return it."""
    with safe_open(weights, "pt") as file:
        metadata: Mapping[str, str] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    state, _ = unflatten_tensor_state_dict(tensors, metadata)
    model.load_state_dict(state, assign=True)
    return model


def _config(layer: Layer, choice: LayerChoice, calibrated: ActivationRange | None) -> AOBaseConfig:
    match choice.name:
        case "int8_static":
            scale, zero_point = (None, None) if calibrated is None else _affine_int8(calibrated, len(layer.input_shape))
            return Int8StaticActivationInt8WeightConfig(act_quant_scale=scale, act_quant_zero_point=zero_point, **_W8A8)
        case "int8_dynamic":
            return Int8DynamicActivationInt8WeightConfig(**_W8A8)
        case "int8_weight_only" if layer.kind is LayerKind.LINEAR:
            return Int8WeightOnlyConfig(set_inductor_config=False)
    return IntxWeightOnlyConfig(
        weight_dtype=_INT4 if choice.precision is Precision.INT4 else torch.int8,
        granularity=PerGroup(INT4_GROUP) if layer.kind is LayerKind.LINEAR else PerAxis(0),
        mapping_type=MappingType.ASYMMETRIC,
    )


def _affine_int8(calibrated: ActivationRange, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point with as many dimensions as the input has, which torchao wants."""
    scale, zero_point = calibrated.affine_uint8()
    shape = (1,) * dims
    return torch.full(shape, scale), torch.full(shape, zero_point - 128, dtype=torch.int8)


def _integers(model: nn.Module, layer: Layer, choice: LayerChoice) -> dict[str, torch.Tensor]:
    """Return what our kernels hold, as the attributes of torchao's tensors."""
    weight = model.get_submodule(layer.name).weight
    assert isinstance(weight, torch.Tensor)
    if layer.kind is LayerKind.EMBEDDING:
        return _integers_per_row(weight.detach(), choice.precision.bits)
    if choice.precision is Precision.INT4:
        values, scales, zeros = int4_per_group(weight.detach())
        return {
            "qdata": (values - 8).to(torch.int8),
            "scale": scales.float(),
            "zero_point": -zeros.float() / scales.float(),
        }
    scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
    values, scales = int8_per_channel(weight.detach(), scale_dtype)
    return {"qdata": values, "scale": scales.float()}


def _integers_per_row(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    quantized, scales, offsets = affine_per_row(weight, bits)
    values = quantized.int_repr()
    if bits == 4:
        values = torch.stack([values & 15, values >> 4], dim=-1).view(weight.shape)
        scales, offsets = (row.to(torch.float16).float() for row in (scales, offsets))
        # Rows of one value: their scale is nothing in fp16, so the offset is all that counts.
        values[scales == 0.0] = 0
        scales = torch.where(scales == 0.0, 1.0, scales)
    half = 2 ** (bits - 1)
    return {
        "qdata": (values.to(torch.int16) - half).to(torch.int8),
        "scale": scales,
        "zero_point": -offsets / scales - half,
    }
