"""Weights packed for FBGEMM, and the only module that creates PyTorch's quantized tensors.

PyTorch 2.13 deprecates them and will remove them (pytorch issue 184982), but has no other way to pack int8 weights with
a scale per output channel. Once they are gone, ``packs_int8`` returns False, and the backend refuses what needs them.
"""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_fbgemm() -> bool:
    """Return whether this build of PyTorch and this processor support FBGEMM."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@functools.cache
def packs_int8() -> bool:
    """Return whether this version of PyTorch still has the quantized tensors from which FBGEMM packs int8 weights."""
    try:
        packed_int8(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1), None)
    except (AttributeError, RuntimeError):
        return False
    return True


def packed_int8(values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Return weights for ``torch.ops.quantized``'s products of uint8 and int8 that return fp32.

    Args:
        values: int8, shape ``(out, in)``.
        scales: fp32, shape ``(out,)``.
        bias: fp32, shape ``(out,)``, or None. FBGEMM reads its memory, so nobody may change it.
    """
    zero_points = torch.zeros(len(scales), dtype=torch.int64)
    # Users cannot act on the warning.
    with _engine(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(values, scales.double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(quantized, bias)


def packed_fp16(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Return weights for ``torch.ops.quantized``'s products of fp32 inputs with fp16 weights.

    Args:
        weight: fp32, shape ``(out, in)``; every number is one of fp16.
        bias: fp32, shape ``(out,)``, or None. FBGEMM reads its memory, so nobody may change it.
    """
    with _engine():
        return torch.ops.quantized.linear_prepack_fp16(weight, bias)


@contextmanager
def _engine() -> Iterator[None]:
    """Pack weights for FBGEMM while the context is open, regardless of the process's engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
