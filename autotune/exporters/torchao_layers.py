"""Quantize a model with torchao, using our integers and ranges wherever its tensors can hold them."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchao.core.config import AOBaseConfig, config_to_dict
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
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

from autotune.exporters.base import Source
from autotune.exporters.safetensors_header import sort_header
from autotune.exporters.torchao_schemes import COMPUTED_IN
from search_spaces.choice import LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.backends.rounding.bias_correction import corrected, has_correction
from workers.backends.rounding.weights import INT4_GROUP, INT8_LARGEST, affine_per_row, int4_per_group, int8_per_channel
from workers.backends.torchao.layers import quantized_weight

#: PyTorch has the type, but its stubs do not.
_INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]


def quantize(source: Source) -> FqnToConfig:
    """Quantize the source's model in place and return the configuration, without static scales.

    Static scales are tensors, which JSON cannot hold; they are in the state dict. Layers in half precision have no
    entry.
    """
    quantization = source.file.quantization_map()
    # Quantize activations like the kernels that measured the map.
    symmetric = source.file.backend.startswith("torchao")
    integers: OrderedDict[str, AOBaseConfig] = OrderedDict()
    without_ranges: OrderedDict[str, AOBaseConfig] = OrderedDict()
    for layer in source.layers:
        choice, module = quantization.choices[layer.name], source.model.get_submodule(layer.name)
        if has_correction(layer):
            module.bias = corrected(module, choice, quantization.ranges.get(layer.name)).bias
        if choice.precision in COMPUTED_IN:
            _in_half(module, choice)
        elif choice.precision.is_quantized:
            smoothing = quantization.smoothing(layer.name)
            calibrated = smoothing.range if smoothing else quantization.ranges.get(layer.name)
            integers[layer.name] = _config(layer, choice, calibrated, symmetric)
        if choice.precision.is_quantized:
            without_ranges[layer.name] = _config(layer, choice, None, symmetric)
    _quantize_to_integers(source, quantization, FqnToConfig(integers))
    return FqnToConfig(without_ranges)


def cast(model: nn.Module, computed_in: Mapping[str, str]) -> nn.Module:
    """Make layers cast their inputs to another type and their outputs to fp32; return the model.

    Args:
        model: the model with quantized weights.
        computed_in: layer name -> name of the PyTorch type for its inputs.
    """
    for name, type_name in computed_in.items():
        before, after = _casts(getattr(torch, type_name))
        model.get_submodule(name).register_forward_pre_hook(before)
        model.get_submodule(name).register_forward_hook(after)
    return model


def save(model: nn.Module, config: FqnToConfig, weights: Path, configuration: Path) -> None:
    """Write the state dict as safetensors, and the configuration as JSON."""
    tensors, metadata = flatten_tensor_state_dict(model.state_dict())
    # torchao 0.18 cannot read names of the root module's own tensors; omitted here, they are restored unchanged.
    metadata["tensor_names"] = json.dumps([name for name in json.loads(metadata["tensor_names"]) if "." in name])
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Copy tied weights, because safetensors rejects tensors that share memory.
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
    quantized, others = unflatten_tensor_state_dict(tensors, metadata)
    model.load_state_dict(others | quantized, assign=True)
    return model


def _casts(dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)

    def after(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.to(torch.float32)

    return before, after


def _in_half(module: nn.Module, choice: LayerChoice) -> None:
    """Convert a layer to bf16 or fp16, or its weight to fp8 and the rest to bf16."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    fp8 = quantized_weight(weight.detach(), choice, None) if choice.precision is Precision.FP8 else None
    module.to(getattr(torch, COMPUTED_IN[choice.precision]))
    if fp8 is not None:
        module.weight = nn.Parameter(fp8, requires_grad=False)


def _quantize_to_integers(source: Source, quantization: QuantizationMap, config: FqnToConfig) -> None:
    layers = [layer for layer in source.layers if layer.name in config.fqn_to_config]
    integers = {layer.name: _integers(source.model, layer, quantization) for layer in layers}
    quantize_(source.model, config, filter_fn=None)
    for name, tensors in integers.items():
        weight = source.model.get_submodule(name).weight
        for attribute, tensor in tensors.items():
            # torchao's own rounding uses another integer range, and integer zero points.
            own = getattr(weight, attribute)
            setattr(weight, attribute, tensor if own is None else tensor.reshape(own.shape))


def _config(layer: Layer, choice: LayerChoice, calibrated: ActivationRange | None, symmetric: bool) -> AOBaseConfig:
    match choice.name:
        case "int8_static" | "int8_static_smooth":
            activation = _activation(PerTensor(), symmetric) | _static(layer, calibrated, symmetric)
            return Int8StaticActivationInt8WeightConfig(**activation)
        case "int8_dynamic":
            return Int8DynamicActivationInt8WeightConfig(
                **_activation(PerRow() if symmetric else PerTensor(), symmetric)
            )
        case "int8_dynamic_per_token":
            return Int8DynamicActivationInt8WeightConfig(**_activation(PerRow(), symmetric=True))
        case "int8_weight_only" if layer.kind is LayerKind.LINEAR:
            return Int8WeightOnlyConfig(set_inductor_config=False)
        case "fp8_dynamic":
            return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        case "fp8_weight_only":
            return Float8WeightOnlyConfig(set_inductor_config=False)
    return IntxWeightOnlyConfig(
        weight_dtype=_INT4 if choice.precision is Precision.INT4 else torch.int8,
        granularity=PerGroup(INT4_GROUP) if layer.kind is LayerKind.LINEAR else PerAxis(0),
        mapping_type=MappingType.ASYMMETRIC,
    )


def _activation(granularity: PerRow | PerTensor, symmetric: bool) -> dict[str, Any]:
    """Return settings that quantize activations with ``granularity``, and weights per row."""
    return {
        "granularity": [granularity, PerRow()],
        "act_mapping_type": MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC,
        "set_inductor_config": False,
    }


def _static(layer: Layer, calibrated: ActivationRange | None, symmetric: bool) -> dict[str, torch.Tensor | None]:
    """Return scale and zero point with as many dimensions as the input, as torchao requires."""
    if calibrated is None:
        return {"act_quant_scale": None}
    shape = (1,) * len(layer.input_shape)
    if symmetric:
        return {"act_quant_scale": torch.full(shape, calibrated.symmetric_scale(INT8_LARGEST))}
    scale, zero_point = calibrated.affine_uint8()
    return {
        "act_quant_scale": torch.full(shape, scale),
        "act_quant_zero_point": torch.full(shape, zero_point - 128, dtype=torch.int8),
    }


def _integers(model: nn.Module, layer: Layer, quantization: QuantizationMap) -> dict[str, torch.Tensor]:
    """Return our kernels' integers, scales and zero points as attributes of torchao's tensors."""
    choice, weight = quantization.choices[layer.name], model.get_submodule(layer.name).weight
    assert isinstance(weight, torch.Tensor)
    if layer.kind is LayerKind.EMBEDDING:
        return _integers_per_row(weight.detach(), choice.precision.bits)
    if choice.precision is Precision.INT4:
        values, scales, zeros = int4_per_group(weight.detach(), quantization.moments(layer.name))
        return {
            "qdata": (values - 8).to(torch.int8),
            "scale": scales.float(),
            "zero_point": -zeros.float() / scales.float(),
        }
    scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
    smoothing = quantization.smoothing(layer.name)
    factors = torch.tensor(smoothing.factors) if smoothing else None
    multiplied = weight.detach() if factors is None else weight.detach() * factors
    values, scales = int8_per_channel(multiplied, scale_dtype, bits=choice.weight_bits)
    divisors = {} if factors is None else {"act_pre_scale": factors.reciprocal()}
    return {"qdata": values, "scale": scales.float(), **divisors}


def _integers_per_row(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    values, scales, offsets = affine_per_row(weight, bits)
    if bits == 4:
        scales, offsets = (row.to(torch.float16).float() for row in (scales, offsets))
        # The scale of a row with equal values underflows to 0 in fp16, so only the offset counts.
        values[scales == 0.0] = 0
        scales = torch.where(scales == 0.0, 1.0, scales)
    half = 2 ** (bits - 1)
    return {
        "qdata": (values.to(torch.int16) - half).to(torch.int8),
        "scale": scales,
        "zero_point": -offsets / scales - half,
    }
