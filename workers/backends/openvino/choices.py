"""The choices that single layers can take in OpenVINO; imports none of its libraries."""

import math

from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.onnx import choices as onnx_choices
from workers.backends.onnx.layer_bytes import STATIC_INPUT
from workers.backends.rounding.weights import INT4_GROUP

_LINEAR = (
    *("bf16", "int8_static", "int8_static_smooth"),
    *("int8_weight_only", "int4_weight_only", "int4_weight_only_gptq"),
)
_CONV = ("bf16", "int8_static")
_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: _LINEAR,
    LayerKind.CONV1D: _CONV,
    LayerKind.CONV2D: _CONV,
    LayerKind.EMBEDDING: ("bf16", "int8_weight_only", "int4_weight_only"),
}
#: Bytes of the constant shape of 4-bit weights.
_SHAPE = 2 * 8


def refuses(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why OpenVINO cannot compute ``layer`` as ``choice`` says, on any processor, or None if it can."""
    if choice == FULL_PRECISION:
        return None
    return _choice_refused(choice) or _layer_refuses(layer, choice) or onnx_choices.refuses(layer, choice)


def _choice_refused(choice: LayerChoice) -> str | None:
    if choice.precision is Precision.FP8:
        return "OpenVINO's CPU plugin has no fp8 products"
    if choice.precision is Precision.FP16:
        return "OpenVINO's CPU plugin widens fp16 layers to fp32, so they would save no time"
    if choice.activation is ActivationMode.DYNAMIC:
        return (
            "OpenVINO's CPU plugin quantizes dynamically by one setting for the whole model, not by layer; its "
            "integer products with computed ranges are slower than fp32"
        )
    return None


def _layer_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    if choice.name in _CHOICES.get(layer.kind, ()):
        return _shape_refuses(layer) if layer.kind is LayerKind.LINEAR and _keeps_inputs(choice) else None
    if layer.kind in (LayerKind.CONV1D, LayerKind.CONV2D) and choice.activation is ActivationMode.NONE:
        return f"OpenVINO's CPU plugin widens {choice.precision} weights of convolutions to fp32 when it loads them"
    return f"OpenVINO has no {choice.name} operator for {layer.kind} layers"


def _keeps_inputs(choice: LayerChoice) -> bool:
    return choice.precision.is_quantized and choice.activation is ActivationMode.NONE


def _shape_refuses(layer: Layer) -> str | None:
    """Return why OpenVINO does not keep the integers of a weight-only layer, or None if it does."""
    if len(layer.input_shape) < 2:
        return "OpenVINO's CPU plugin widens integer weights to fp32 where the input is a single vector"
    if 1 in layer.weight_shape:
        return "OpenVINO's CPU plugin widens integer weights to fp32 where a layer has one input or output"
    return None


def layer_bytes(layer: Layer, choice: LayerChoice) -> int:
    """Return the bytes of ``layer`` prepared with ``choice``: weights, scales, zero points and bias."""
    if choice == FULL_PRECISION:
        return layer.weight_bytes
    outputs, features = layer.weight_shape[0], math.prod(layer.weight_shape[1:])
    bias = outputs * (2 if choice.precision is Precision.BF16 else 4) if layer.has_bias else 0
    match choice.name:
        case "bf16":
            weights = 2 * outputs * features
        case "int8_static":
            weights = outputs * (features + 4) + STATIC_INPUT
        case "int8_static_smooth":
            weights = outputs * (features + 4) + STATIC_INPUT + 4 * features
        case "int8_weight_only":
            # Rows of embeddings have zero points too.
            weights = outputs * (features + (8 if layer.kind is LayerKind.EMBEDDING else 4))
        case _ if layer.kind is LayerKind.EMBEDDING:
            weights = outputs * (features // 2 + 8)
        case _:
            weights = outputs * (features // 2 + features // INT4_GROUP * 8) + _SHAPE
    return weights + bias
