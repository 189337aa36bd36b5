"""Our choices as compressed-tensors schemes, which llm-compressor's recipes use as well."""

from collections.abc import Iterable, Mapping
from typing import Any

from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

_INT8_WEIGHTS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_INT8_INPUT: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": False}
_INT4: dict[str, Any] = {
    # Symmetric: transformers 5.23 cannot load packed zero points, and vLLM has fewer kernels for them.
    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": INT4_GROUP},
    "format": "pack-quantized",
}
#: Choice -> weights, input activations and format of a layer.
_SCHEMES: dict[str, dict[str, Any]] = {
    "int8_static": {
        "weights": _INT8_WEIGHTS,
        "input_activations": _INT8_INPUT | {"strategy": "tensor", "dynamic": False},
        "format": "int-quantized",
    },
    "int8_dynamic": {
        "weights": _INT8_WEIGHTS,
        # vLLM supports dynamic ranges per token only, not per tensor.
        "input_activations": _INT8_INPUT | {"strategy": "token", "dynamic": True},
        "format": "int-quantized",
    },
    "int8_dynamic_per_token": {
        "weights": _INT8_WEIGHTS,
        "input_activations": _INT8_INPUT | {"symmetric": True, "strategy": "token", "dynamic": True},
        "format": "int-quantized",
    },
    "int8_weight_only": {"weights": _INT8_WEIGHTS, "format": "pack-quantized"},
    "int4_weight_only": _INT4,
    "int4_weight_only_gptq": _INT4,
}
#: Choices that have a scheme.
NAMES = tuple(_SCHEMES)
#: Divisor of the input features: int8 weights fill 32-bit words, int4 weights fill groups.
_DIVISOR = {Precision.INT8: 4, Precision.INT4: INT4_GROUP}


def groups(choices: Mapping[str, LayerChoice]) -> dict[str, dict[str, Any]]:
    """Return the ``config_groups`` of a map: choice -> its scheme and the exact names of its layers."""
    return {
        name: {"targets": [layer for layer, choice in choices.items() if choice.name == name], **scheme}
        for name, scheme in _SCHEMES.items()
        if name in {choice.name for choice in choices.values()}
    }


def model_format(chosen: Iterable[Mapping[str, Any]]) -> str:
    """Return the format of a checkpoint whose groups are ``chosen``."""
    formats = {group["format"] for group in chosen}
    return "mixed-precision" if len(formats) > 1 else next(iter(formats), "dense")


def refusal(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why compressed-tensors, or vLLM as its reader, cannot express a choice, or None if they can."""
    if choice == FULL_PRECISION:
        return None
    if layer.kind is not LayerKind.LINEAR:
        return f"vLLM reads compressed linear layers only, but this is a layer of kind {layer.kind}"
    if layer.name.rpartition(".")[-1] == "lm_head":
        return "vLLM and SGLang read a compressed output head only in some models and versions; pin it to fp32"
    if choice.name not in _SCHEMES:
        return f"a checkpoint can hold int8 and int4 layers and one floating-point type, but no {choice.name} layer"
    return layer.frozen_reason or _expert_refuses(layer, choice) or _shape_refuses(layer, choice)


def _expert_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    if "experts.*." in layer.group and choice.activation is ActivationMode.STATIC:
        return "vLLM's kernels for experts support ranges per token, but no static ones"
    return None


def _shape_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    features, divisor = layer.weight_shape[1], _DIVISOR[choice.precision]
    if choice.needs_int8_products or features % divisor == 0:
        return None
    return f"{choice.precision} needs input features divisible by {divisor}, but got {features}"
