"""The choices that ONNX can express; imports none of its libraries."""

from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

_LINEAR = (
    *("bf16", "fp16", "int8_static", "int8_static_smooth", "int8_dynamic", "int8_dynamic_per_token"),
    *("int8_weight_only", "int4_weight_only", "int4_weight_only_gptq"),
)
_CONV = ("bf16", "fp16", "int8_static", "int8_dynamic")
_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: _LINEAR,
    LayerKind.CONV1D: _CONV,
    LayerKind.CONV2D: _CONV,
    LayerKind.EMBEDDING: ("bf16", "fp16", "int8_weight_only", "int4_weight_only"),
}


def has_place(layer: Layer) -> bool:
    """Return whether a layer gets a placeholder in the graph; other layers are traced with the model."""
    return layer.frozen_reason is None and layer.kind in _CHOICES


def refuses(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why no operator computes ``layer`` with ``choice``, or None if one can."""
    if choice == FULL_PRECISION:
        return None
    if choice.precision is Precision.FP8:
        return "ONNX Runtime's CPU provider has no fp8 products"
    if choice.name not in _CHOICES.get(layer.kind, ()):
        return f"ONNX has no {choice.name} operator for {layer.kind} layers"
    return layer.frozen_reason or _shape_refuses(layer, choice)


def _shape_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    if len(layer.input_shape) < len(layer.weight_shape) and layer.kind in (LayerKind.CONV1D, LayerKind.CONV2D):
        return "ONNX convolves batches only, but this layer takes single samples"
    if choice.precision is not Precision.INT4:
        return None
    features = layer.weight_shape[1]
    if layer.kind is LayerKind.EMBEDDING:
        return f"int4 rows hold two features per byte, but this embedding has {features}" if features % 2 else None
    return f"int4 needs input features divisible by {INT4_GROUP}, but got {features}" if features % INT4_GROUP else None
