"""The layers and choices that torchao has tensors for, and the types in which layers compute."""

from autotune.exporters.base import Source
from search_spaces.choice import LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

_FP8 = ("fp8_dynamic", "fp8_weight_only")
_CHOICES: dict[LayerKind, tuple[str, ...]] = {
    LayerKind.LINEAR: (
        *("int8_static", "int8_static_smooth", "int8_dynamic", "int8_dynamic_per_token"),
        "int8_weight_only",
        *_FP8,
        *("int4_weight_only", "int4_weight_only_gptq"),
    ),
    LayerKind.EMBEDDING: ("int8_weight_only", "int4_weight_only"),
}
#: Weight format -> the type in which layers with it compute, independent of the model.
COMPUTED_IN = {Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP8: "bfloat16"}


def computed_in(source: Source) -> dict[str, str]:
    """Return layer name -> the type in which it computes, for layers whose inputs must be cast."""
    choices = source.file.quantization_map().choices
    return {
        layer.name: COMPUTED_IN[choices[layer.name].precision]
        for layer in source.layers
        if choices[layer.name].precision in COMPUTED_IN
    }


def refusal(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why torchao cannot express a choice other than full precision, or None if it can."""
    if layer.kind in (LayerKind.LSTM, LayerKind.GRU, LayerKind.EMBEDDING_BAG):
        return f"torchao has no tensor for {layer.kind} layers, and their additional inputs cannot be cast"
    if choice.precision in (Precision.BF16, Precision.FP16):
        return layer.frozen_reason
    if choice.name == "fp8_static":
        return "torchao has no fp8 tensor with a static scale; use fp8_dynamic or int8_static"
    if choice.name not in _CHOICES.get(layer.kind, ()):
        return f"torchao has no {choice.name} tensor for {layer.kind} layers"
    features = layer.weight_shape[1]
    if choice.precision is Precision.INT4 and layer.kind is LayerKind.LINEAR and features % INT4_GROUP:
        return f"int4 needs input features divisible by {INT4_GROUP}, but got {features}"
    return layer.frozen_reason
