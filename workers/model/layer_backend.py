"""The ``LayerBackend`` seam: what prepares single layers for their choices."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange


class LayerBackend(Protocol):
    """Prepares full-precision layers for choices.

    A prepared module takes and returns what the original takes and returns, in fp32, so layers with
    different choices can be neighbours. It never changes the module it was prepared from.
    """

    def int8_weight_bits(self, layer: Layer) -> int:
        """Return how many bits int8 weights of ``layer`` may have for int8 products to be exact here: 8 or 7.

        New maps take so many. A map with other bits is refused, or runs right but slower.
        """
        ...

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why no kernel runs ``layer`` with ``choice``, or None if one does."""
        ...

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]], known: str | None = None
    ) -> str | None:
        """Return the name of what computes ``module`` with ``choice`` at input ``shapes``, None if there is no choice.

        Kernels may be timed for it, so the caller holds the device lock. ``known`` is the name that was returned
        elsewhere for the same; it is returned again if that kernel runs here.
        """
        ...

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[tuple[int, ...]] = (),
        kernel: str | None = None,
    ) -> nn.Module:
        """Return a module that runs ``module`` with ``choice``.

        Args:
            module: the full-precision layer; full precision itself may return it unchanged.
            choice: one the backend does not refuse for this layer.
            input_range: calibrated range of the input; static choices need it. If it has the means of channels, the
                bias makes up for what rounding the weights adds to outputs on average.
            shapes: of the inputs at which it should be fast; empty if they are not known.
            kernel: what should compute it, as ``kernel`` names it; one that does not run here is not taken.
        """
        ...

    def weight_bytes(self, prepared: nn.Module) -> int:
        """Return the exact bytes a prepared module holds: weights, scales, zero points and bias.

        A full-precision module counts its parameters and buffers.
        """
        ...

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        """Return what ``weight_bytes`` of ``layer`` prepared with ``choice`` is, without preparing it."""
        ...
