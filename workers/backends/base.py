"""The ``Backend`` seam: kernels of one kind of hardware."""

from typing import Protocol

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange


class Backend(Protocol):
    """Turns a full-precision layer and a choice into a module with real kernels.

    A prepared module takes and returns what the original takes and returns, in fp32, so layers with
    different choices can be neighbours. It never changes the module it was prepared from.
    """

    #: Name in job files.
    name: str
    #: PyTorch device the model runs on.
    device: str

    def unavailable(self) -> str | None:
        """Return why the backend cannot run here, or None if it can."""
        ...

    def hardware(self) -> str:
        """Return the processor or accelerator the kernels run on, for people."""
        ...

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why no kernel runs ``layer`` with ``choice``, or None if one does."""
        ...

    def prepare(self, module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> nn.Module:
        """Return a module that runs ``module`` with ``choice``.

        Args:
            module: the full-precision layer; full precision itself may return it unchanged.
            choice: one the backend does not refuse for this layer.
            input_range: calibrated range of the input; static choices need it.
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
