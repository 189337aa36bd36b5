"""The base of prepared layers."""

from torch import nn


class PackedLayer(nn.Module):
    """A layer whose weights are held in a kernel's own packed form only.

    Packed weights are not parameters or buffers, so the layer says itself how many bytes it holds.
    """

    #: Bytes of packed weights, scales, zero points and bias. Padding that a kernel library adds to
    #: layers narrower than its blocks is not visible, and not counted.
    packed_bytes: int

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._summary = original.extra_repr()

    def extra_repr(self) -> str:
        """Return what the original says of itself, and the bytes held now."""
        return f"{self._summary}, packed_bytes={self.packed_bytes}"
