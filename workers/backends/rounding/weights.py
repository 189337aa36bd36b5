"""Rounding of weights: per-channel symmetric int8 and fp8, per-group asymmetric int4, per-row affine embeddings."""

from collections.abc import Iterator

import torch

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import SecondMoments
from workers.backends.rounding import gptq

#: Input features per int4 scale; PyTorch's int4 kernel and most runtimes support this size.
INT4_GROUP = 32

#: Largest integer of symmetric int8, which leaves out -128.
INT8_LARGEST = 127.0

#: Largest number of fp16, to which larger weights are clamped, as FBGEMM does.
FP16_LARGEST = 65504.0

#: Largest number of the fp8 format for weights and activations (e4m3: four exponent bits, three mantissa bits).
FP8_LARGEST = 448.0

#: Bytes of weights rounded at once.
_BYTES_AT_ONCE = 16 << 20


def int8_per_channel(
    weight: torch.Tensor, scale_dtype: torch.dtype = torch.float32, *, bits: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return symmetric int8 values and one scale per output channel.

    Args:
        weight: shape ``(out, ...)``.
        scale_dtype: the kernel's type for scales; values are rounded with the scale that the kernel uses.
        bits: bits of the values, 8 or 7; see ``LayerChoice.weight_bits``.

    Returns:
        int8 values of the same shape in [-127, 127] or [-63, 63], and scales of shape ``(out,)``; ``weight`` is
        approximately ``values * scales``.
    """
    largest = 2.0 ** (bits - 1) - 1.0
    low, high = weight.flatten(1).aminmax(dim=1)
    scales = _usable(torch.maximum(-low, high) / largest).to(scale_dtype)
    # Contiguous, because the kernels reject or misread a transposed layout.
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for some, scale, into in in_parts(weight, scales.float().view(-1, *[1] * (weight.dim() - 1)), values):
        into.copy_((some / scale).round_().clamp_(-largest, largest))
    return values, scales


def fp16(weight: torch.Tensor) -> torch.Tensor:
    """Return ``weight`` in fp16, clamped to the largest finite number."""
    # Clamp in place, which keeps the strides of a 1 x 1 kernel in channels_last.
    return weight.detach().to(torch.float16, copy=True).clamp_(-FP16_LARGEST, FP16_LARGEST)


def fp8_per_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp8 values of the same shape as ``weight``, ``(out, in)``, and fp32 scales of shape ``(out, 1)``."""
    return _fp8(weight, weight.abs().amax(dim=1, keepdim=True))


def fp8_per_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fp8 values of the same shape as ``weight``, ``(out, in)``, and one fp32 scale of shape ``(1, 1)``."""
    return _fp8(weight, weight.abs().amax().view(1, 1))


def int4_per_group(
    weight: torch.Tensor, moments: SecondMoments | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return asymmetric int4 values with one scale and zero per group of input features.

    Each group's range is widened to include 0. This limits its zero to 8 scales, and thereby the error of
    rounding the zero to bf16. Values are rounded with the bf16 scale and zero that the kernel uses.

    Args:
        weight: shape ``(out, in)``, ``in`` divisible by ``INT4_GROUP``.
        moments: second moments of the layer's inputs, to round by GPTQ; None rounds to the nearest.

    Returns:
        int32 values of shape ``(out, in)`` in [0, 15], and bf16 scales and zeros of shape
        ``(out, in / INT4_GROUP)``; ``weight`` is approximately ``(values - 8) * scale + zero``.
    """
    groups = weight.reshape(len(weight), -1, INT4_GROUP)  # (out, in / group, group)
    low, high = groups.amin(dim=-1).clamp(max=0.0), groups.amax(dim=-1).clamp(min=0.0)
    scales = _usable((high - low) / 15.0).to(torch.bfloat16)
    zeros = (low + 8.0 * scales.float()).to(torch.bfloat16)
    if moments is not None:
        return gptq.rounded_steps(weight, scales.float(), zeros.float(), INT4_GROUP, moments) + 8, scales, zeros
    values = torch.empty(groups.shape, dtype=torch.int32, device=weight.device)
    for some, scale, zero, into in in_parts(groups, scales[..., None].float(), zeros[..., None].float(), values):
        into.copy_((some - zero).div_(scale).round_().add_(8).clamp_(0, 15))
    return values.flatten(1), scales, zeros


def affine_per_row(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows of an embedding as asymmetric integers, with one scale and offset per row.

    The formula is that of PyTorch's ``torch.per_channel_affine_float_qparams``: the scaled weight is rounded after the
    zero point, a fraction, is added.

    Args:
        weight: shape ``(rows, features)``.
        bits: 8 or 4.

    Returns:
        uint8 integers of the same shape in [0, 255] or [0, 15], and fp32 scales and offsets of shape ``(rows,)``;
        ``weight`` is approximately ``integers * scale + offset``.
    """
    low, high = weight.amin(dim=1), weight.amax(dim=1)
    scales = torch.clamp((high - low) / (2**bits - 1), min=1e-8)
    integers = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    steps, zeros = scales.reciprocal()[:, None], (-low / scales)[:, None]
    for some, step, zero, into in in_parts(weight, steps, zeros, integers):
        into.copy_((some * step).add_(zero).round_().clamp_(0, 2**bits - 1))
    return integers, scales, low


def in_pairs(values: torch.Tensor) -> torch.Tensor:
    """Return 4-bit integers two per byte, the first in the lower half; (..., n) -> (..., n / 2) in uint8."""
    pairs = values.to(torch.uint8).reshape(*values.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def rounded(
    weight: torch.Tensor, choice: LayerChoice, moments: SecondMoments | None = None, *, by_row: bool
) -> torch.Tensor:
    """Return ``weight`` rounded for a choice and dequantized to fp32.

    Args:
        weight: shape ``(out, ...)``.
        choice: the choice to round for.
        moments: second moments of the layer's inputs, for GPTQ.
        by_row: whether the weights belong to an embedding, whose rows have their own scales and offsets.
    """
    match choice.precision:
        case Precision.BF16:
            return weight.to(torch.bfloat16).float()
        case Precision.FP16:
            return fp16(weight).float()
        case Precision.INT8 | Precision.INT4 if by_row:
            integers, *affine = affine_per_row(weight, choice.precision.bits)
            scales, offsets = (part[:, None] for part in affine)
            # Both runtimes store scales and offsets of 4-bit rows in fp16.
            kept = torch.float16 if choice.precision is Precision.INT4 else torch.float32
            return integers * scales.to(kept).float() + offsets.to(kept).float()
        case Precision.INT8:
            scale_dtype = torch.float32 if choice.needs_int8_products else torch.bfloat16
            integers, scales = int8_per_channel(weight, scale_dtype, bits=choice.weight_bits)
            return integers * scales.float().view(-1, *[1] * (weight.dim() - 1))
        case Precision.INT4:
            values, scales, zeros = (part.float() for part in int4_per_group(weight, moments))
            groups = (values.view(len(weight), -1, INT4_GROUP) - 8.0) * scales[..., None] + zeros[..., None]
            return groups.flatten(1)
    return weight


def _fp8(weight: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = _usable(largest / FP8_LARGEST)
    # Clamp, because the type represents larger numbers as nan.
    return (weight / scales).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scales


def in_parts(weight: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield a few rows of each tensor at a time, so that computations on large weights need little fp32 memory."""
    rows = max(1, _BYTES_AT_ONCE * len(weight) // max(1, weight.nbytes))
    return zip(*(torch.split(tensor, rows) for tensor in (weight, *others)), strict=True)


def _usable(scales: torch.Tensor) -> torch.Tensor:
    """Return ``scales`` with a positive lower bound, because weights are divided by them."""
    return scales.clamp(min=torch.finfo(torch.float32).tiny)
