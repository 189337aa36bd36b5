"""Bytes of prepared layers, computed from their shapes."""

import math
from collections.abc import Callable

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer, LayerKind
from workers.backends.rounding.weights import INT4_GROUP

#: Bytes from the numbers of weights, outputs and biases.
_Bytes = Callable[[int, int, int], int]

#: Linear layers and convolutions.
_PRODUCT: dict[str, _Bytes] = {
    "bf16": lambda weights, outputs, biases: 2 * (weights + biases),
    "fp16": lambda weights, outputs, biases: 2 * weights + 4 * biases,
    "int8_static": lambda weights, outputs, biases: weights + (4 + 4) * outputs + 4 * biases,
    "int8_static_smooth": lambda weights, outputs, biases: (
        weights + (4 + 4) * outputs + 4 * biases + 4 * (weights // outputs)
    ),
    **dict.fromkeys(
        ("int8_dynamic", "int8_dynamic_per_token"),
        lambda weights, outputs, biases: weights + (4 + 4) * outputs + 4 * biases,
    ),
    "int8_weight_only": lambda weights, outputs, biases: weights + 2 * outputs + 4 * biases,
    **dict.fromkeys(
        ("int4_weight_only", "int4_weight_only_gptq"),
        lambda weights, outputs, biases: weights // 2 + weights // INT4_GROUP * (2 + 2) + 4 * biases,
    ),
}
#: Embeddings; each row is an output with its own scale and offset.
_LOOKUP: dict[str, _Bytes] = {
    **dict.fromkeys(("bf16", "fp16"), lambda weights, rows, _: 2 * weights),
    "int8_weight_only": lambda weights, rows, _: weights + (4 + 4) * rows,
    "int4_weight_only": lambda weights, rows, _: weights // 2 + (2 + 2) * rows,
}
#: LSTM and GRU; int8 layers have a scale, a zero point and a sum of weights per output.
_RECURRENT: dict[str, _Bytes] = {
    "bf16": lambda weights, outputs, biases: 2 * (weights + biases),
    "fp16": lambda weights, outputs, biases: 2 * weights + 4 * biases,
    "int8_dynamic": lambda weights, outputs, biases: weights + (4 + 4 + 4) * outputs + 4 * biases,
}


def layer_bytes(layer: Layer, choice: LayerChoice) -> int:
    """Return the bytes of ``layer`` prepared with ``choice``: weights, scales, zero points and bias."""
    if choice == FULL_PRECISION:
        return layer.weight_bytes
    formulas = _LOOKUP if layer.kind.looks_up else _PRODUCT
    outputs, weights = layer.outputs, math.prod(layer.weight_shape)
    if layer.kind in (LayerKind.LSTM, LayerKind.GRU):
        formulas, outputs, weights = _RECURRENT, *_recurrent_sizes(layer)
    return formulas[choice.name](weights, outputs, outputs if layer.has_bias else 0)


def _recurrent_sizes(layer: Layer) -> tuple[int, int]:
    """Return the total outputs and weights of the input and hidden-state products of all layers and directions."""
    layers, directions, outputs, features = layer.weight_shape
    hidden = outputs // (4 if layer.kind is LayerKind.LSTM else 3)
    inputs = features + (layers - 1) * directions * hidden
    return 2 * layers * directions * outputs, directions * outputs * (inputs + layers * hidden)
