"""Layers that torchao supports on each GPU, and their bytes: pure functions of capability, layer and choice."""

import math
from collections.abc import Callable

from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

#: Major and minor compute capability of a GPU; None for the CPU, which has no such requirement.
Capability = tuple[int, int] | None

_HALVES = ("bf16", "fp16")
#: Layer type -> choices; every other type stays in full precision.
_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: (
        *_HALVES,
        *("int8_static", "int8_static_smooth", "int8_dynamic", "int8_weight_only"),
        *("fp8_static", "fp8_dynamic", "fp8_weight_only"),
        *("int4_weight_only", "int4_weight_only_gptq"),
    ),
    LayerKind.CONV1D: _HALVES,
    LayerKind.CONV2D: _HALVES,
    LayerKind.CONV_TRANSPOSE1D: _HALVES,
    LayerKind.CONV_TRANSPOSE2D: _HALVES,
    LayerKind.EMBEDDING: _HALVES,
}
#: Weight format -> minimum compute capability whose tensor cores support it, the first GPUs with it, and a replacement.
#: Weight-only int8 and int4 layers multiply in bf16.
_LEAST: dict[Precision, tuple[tuple[int, int], str, str]] = {
    Precision.FP16: ((7, 0), "V100", "fp32"),
    Precision.BF16: ((8, 0), "A100", "fp16"),
    Precision.INT8: ((8, 0), "A100", "fp16"),
    Precision.INT4: ((8, 0), "A100", "fp16"),
    Precision.FP8: ((8, 9), "L4, H100", "int8"),
}
#: Divisor of the features that 8-bit tensor cores and the int4 kernel require.
_ALIGNMENT = 16


def refuses(capability: Capability, layer: Layer, choice: LayerChoice) -> str | None:
    """Return why no kernel runs ``layer`` with ``choice`` on a GPU of this capability, or None if one can."""
    if choice == FULL_PRECISION:
        return None
    return layer.frozen_reason or _layer_refuses(layer, choice) or _device_refuses(capability, choice)


def layer_bytes(layer: Layer, choice: LayerChoice) -> int:
    """Return the bytes of ``layer`` prepared with ``choice``: weights, scales, zeros and bias."""
    if choice == FULL_PRECISION:
        return layer.weight_bytes
    outputs = layer.outputs
    return _BYTES[choice.name](math.prod(layer.weight_shape), outputs, outputs if layer.has_bias else 0)


#: Choice -> bytes, given the numbers of weights, outputs and biases.
_BYTES: dict[str, Callable[[int, int, int], int]] = {
    "bf16": lambda weights, outputs, biases: 2 * (weights + biases),
    "fp16": lambda weights, outputs, biases: 2 * (weights + biases),
    "int8_static": lambda weights, outputs, biases: weights + 4 * (outputs + 1 + biases),
    "int8_static_smooth": lambda weights, outputs, biases: weights + 4 * (outputs + 1 + biases + weights // outputs),
    "int8_dynamic": lambda weights, outputs, biases: weights + 4 * (outputs + biases),
    "int8_weight_only": lambda weights, outputs, biases: weights + 2 * (outputs + biases),
    "fp8_static": lambda weights, outputs, biases: weights + 4 * (1 + 1) + 2 * biases,
    "fp8_dynamic": lambda weights, outputs, biases: weights + 4 * outputs + 2 * biases,
    "fp8_weight_only": lambda weights, outputs, biases: weights + 4 * outputs + 2 * biases,
    **dict.fromkeys(
        ("int4_weight_only", "int4_weight_only_gptq"),
        lambda weights, outputs, biases: weights // 2 + weights // INT4_GROUP * (2 + 2) + 2 * biases,
    ),
}


def _layer_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    choices = _CHOICES.get(layer.kind, ())
    if choice.is_per_token:
        return "torchao's int8_dynamic already has one scale per row of the input; use that"
    if choice.name not in choices:
        return f"torchao has no {choice.name} kernel for {layer.kind} layers; they take {', '.join(('fp32', *choices))}"
    if choice.precision in (Precision.BF16, Precision.FP16):
        return None
    outputs, features = layer.weight_shape
    if choice.precision is Precision.INT4:
        if features % INT4_GROUP:
            return f"int4 needs input features divisible by {INT4_GROUP}, but this layer has {features}; use int8"
        if outputs % _ALIGNMENT:
            return f"int4 needs output features divisible by {_ALIGNMENT}, but this layer has {outputs}; use int8"
    elif choice.activation != "none" and (outputs % _ALIGNMENT or features % _ALIGNMENT):
        return (
            f"8-bit products need features divisible by {_ALIGNMENT}, but this layer takes {features} and returns "
            f"{outputs}; use bf16 or a weight-only choice"
        )
    return None


def _device_refuses(capability: Capability, choice: LayerChoice) -> str | None:
    least, gpus, instead = _LEAST[choice.precision]
    if capability is None or capability >= least:
        return None
    needed, found = (".".join(map(str, version)) for version in (least, capability))
    return (
        f"{choice.precision} needs compute capability {needed} ({gpus} or newer), but this GPU has {found}; "
        f"use {instead}"
    )
