"""Selection of PyTorch's quantized engine, which packs weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_fbgemm() -> bool:
    """Return whether this build of PyTorch and this processor support FBGEMM."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def fbgemm() -> Iterator[None]:
    """Pack weights for FBGEMM while the context is open, regardless of the process's engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
