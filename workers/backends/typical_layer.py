"""What a backend refuses for a linear layer of a common shape: what this machine cannot do for most models."""

from collections.abc import Iterable

from search_spaces.choice import CHOICES
from search_spaces.layer import Layer, LayerKind
from workers.backends.base import Backend

#: Input and output features of the layer, typical of transformers.
FEATURES, OUTPUTS = 768, 3072
_LAYER = Layer(
    name="linear",
    kind=LayerKind.LINEAR,
    weight_shape=(OUTPUTS, FEATURES),
    has_bias=True,
    weight_bytes=4 * OUTPUTS * (FEATURES + 1),
    input_shape=(1, FEATURES),
    flops=2 * OUTPUTS * FEATURES,
    calls=1,
    order=0,
    group="linear",
)


def refusals(backend: Backend, choices: Iterable[str]) -> tuple[dict[str, str], int]:
    """Return choice name -> reason, for the choices that the layer cannot take, and the bits of its int8 weights."""
    bits = backend.int8_weight_bits(_LAYER)
    found = {name: backend.refuses(_LAYER, CHOICES[name].with_weight_bits(bits)) for name in choices}
    return {name: reason for name, reason in found.items() if reason is not None}, bits
