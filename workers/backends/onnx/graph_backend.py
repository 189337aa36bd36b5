"""The base of backends that run whole graphs; PyTorch only emulates single layers. Imports no runtime."""

from collections.abc import Sequence

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from workers.backends.packed import weight_bytes
from workers.device import environment
from workers.device.processor import this_processor


class GraphBackend:
    """What backends of whole graphs on the CPU have in common. See ``Backend``."""

    device = "cpu"
    runs_modules = False

    def __init__(self) -> None:
        self._processor = this_processor()

    def hardware(self) -> str:
        return environment.cpu_hardware()

    def int8_weight_bits(self, layer: Layer) -> int:
        return self._processor.int8_weight_bits

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]], known: str | None = None
    ) -> str | None:
        """See ``Backend.kernel``; the runtime itself selects kernels."""
        return None

    def weight_bytes(self, prepared: nn.Module) -> int:
        return weight_bytes(prepared)

    def _saturates(self, choice: LayerChoice) -> str | None:
        """Return why int8 products with the choice's weights would be wrong on this processor, or None."""
        reason = self._processor.saturates(choice.weight_bits) if choice.needs_int8_products else None
        return reason and f"{reason}; run a new job here, which will use 7-bit weights"
