"""Bytes of a layer's constants in an ONNX graph, computed from its shape."""

import math
from collections.abc import Callable

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

#: Scale and zero point of an input with a calibrated range.
STATIC_INPUT = 4 + 1
#: Constants of per-row quantization: dimension, largest integer, smallest scale, the scale 1, and the zero point.
_ROWS = 8 + 4 + 4 + 4 + 1
#: Constants for unpacking two integers from a byte.
_UNPACKING = 8 + 1 + 1


def layer_bytes(layer: Layer, choice: LayerChoice) -> int:
    """Return the bytes of ``layer`` prepared with ``choice``: weights, scales, zero points and bias."""
    if choice == FULL_PRECISION:
        return layer.weight_bytes
    formulas = _LOOKUP if layer.kind is LayerKind.EMBEDDING else _PRODUCT
    outputs = layer.weight_shape[0]
    bias = 4 * outputs if layer.has_bias else 0
    return formulas[choice.name](outputs, math.prod(layer.weight_shape[1:])) + bias


#: Choice -> bytes without bias, given the number of outputs and the weights per output.
_PRODUCT: dict[str, Callable[[int, int], int]] = {
    "int8_static": lambda outputs, features: outputs * (features + 4) + STATIC_INPUT,
    "int8_static_smooth": lambda outputs, features: outputs * (features + 4) + STATIC_INPUT + 4 * features,
    "int8_dynamic": lambda outputs, features: outputs * (features + 4),
    "int8_dynamic_per_token": lambda outputs, features: outputs * (features + 4) + _ROWS,
    "int8_weight_only": lambda outputs, features: outputs * (features + 4),
    **dict.fromkeys(
        ("int4_weight_only", "int4_weight_only_gptq"),
        lambda outputs, features: outputs * (features // 2 + features // INT4_GROUP * (4 + 4)),
    ),
}
#: The same for embeddings, whose outputs are rows.
_LOOKUP: dict[str, Callable[[int, int], int]] = {
    "int8_weight_only": lambda rows, features: rows * (features + 4 + 4),
    "int4_weight_only": lambda rows, features: rows * (features // 2 + 2 + 2) + _UNPACKING,
}
