"""The ``LayerBackend`` protocol: prepares single layers for their choices."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange


class LayerBackend(Protocol):
    """Prepares full-precision layers for choices.

    A prepared module has the same fp32 inputs and outputs as the original, so layers with different
    choices can follow each other. Preparing never changes the original module.
    """

    def int8_weight_bits(self, layer: Layer) -> int:
        """Return the most bits of int8 weights with which int8 products of ``layer`` are exact here: 8 or 7.

        New maps use this number. The backend refuses a map with more bits, or runs it correctly but more slowly.
        """
        ...

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why no kernel runs ``layer`` with ``choice``, or None if one can."""
        ...

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]], known: str | None = None
    ) -> str | None:
        """Return the name of the kernel for ``module`` with ``choice`` at input ``shapes``; None if it has no name.

        The choice is as for ``prepare``. The backend may time kernels, so the caller holds the device lock. ``known``
        is the name that another worker got for the same layer; if that kernel runs here, it is returned again.
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
            module: the full-precision layer.
            choice: a choice other than full precision, which the backend does not refuse for this layer.
            input_range: calibrated range of the input; choices that need calibration require it. If it has channel
                means, the bias is corrected for the mean error of the rounded weights.
            shapes: input shapes to choose the kernel for; empty if unknown.
            kernel: preferred kernel, as named by ``kernel``; ignored if it does not run here.
        """
        ...

    def weight_bytes(self, prepared: nn.Module) -> int:
        """Return the exact bytes a prepared module holds: weights, scales, zero points and bias.

        A full-precision module counts its parameters and buffers.
        """
        ...

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        """Return the ``weight_bytes`` of ``layer`` prepared with ``choice``, without preparing it."""
        ...
