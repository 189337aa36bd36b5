"""Which of PyTorch's quantized engines packs weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_fbgemm() -> bool:
    """Return whether this build of PyTorch and this processor have FBGEMM."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def fbgemm() -> Iterator[None]:
    """Pack weights for FBGEMM while the context is open, whatever the process has chosen otherwise."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
