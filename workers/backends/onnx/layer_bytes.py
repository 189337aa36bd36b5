"""Bytes of a layer's constants in an ONNX graph, from its shape alone."""

import math
from collections.abc import Callable

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

#: Input features that share one scale of ``MatMulNBits`` with 8 bits; ours are equal along the whole row.
INT8_BLOCK = 128
#: Scale and zero point of the input.
_INPUT = 4 + 1
#: The numbers that make uint8 of rows: dimension, largest integer, least scale, and the zero point in two types.
_ROWS = 8 + 4 + 4 + 4 + 1
#: The numbers that unpack two integers from a byte.
_UNPACKING = 8 + 1 + 1


def layer_bytes(layer: Layer, choice: LayerChoice) -> int:
    """Return the bytes of ``layer`` prepared with ``choice``: weights, scales, zero points and bias."""
    if choice == FULL_PRECISION:
        return layer.weight_bytes
    formulas = _LOOKUP if layer.kind is LayerKind.EMBEDDING else _PRODUCT
    outputs = layer.weight_shape[0]
    bias = 4 * outputs if layer.has_bias else 0
    return formulas[choice.name](outputs, math.prod(layer.weight_shape[1:])) + bias


def _int8_weight_only(outputs: int, features: int) -> int:
    return outputs * math.ceil(features / INT8_BLOCK) * (INT8_BLOCK + 4)


#: Bytes without bias from the number of outputs and of weights of each.
_PRODUCT: dict[str, Callable[[int, int], int]] = {
    "int8_static": lambda outputs, features: outputs * (features + 4) + _INPUT,
    "int8_static_smooth": lambda outputs, features: outputs * (features + 4) + _INPUT + 4 * features,
    "int8_dynamic": lambda outputs, features: outputs * (features + 4),
    "int8_dynamic_per_token": lambda outputs, features: outputs * (features + 4) + _ROWS,
    "int8_weight_only": _int8_weight_only,
    **dict.fromkeys(
        ("int4_weight_only", "int4_weight_only_gptq"),
        lambda outputs, features: outputs * (features // 2 + features // INT4_GROUP * (4 + 4)),
    ),
}
#: The same of embeddings; each row is an output.
_LOOKUP: dict[str, Callable[[int, int], int]] = {
    "int8_weight_only": lambda rows, features: rows * (features + 4 + 4),
    "int4_weight_only": lambda rows, features: rows * (features // 2 + 2 + 2) + _UNPACKING,
}
