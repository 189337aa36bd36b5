"""The kernels that compute each choice on CPUs. To add one, add an entry; contract tests then cover it.

Entries of one choice compute the same numbers, so the backend uses the fastest at a layer's shapes.
Times relative to fp32, measured with AVX2 only and two threads: W8A8 at 1 row of 2048 x 2048 takes 0.12 with FBGEMM and
0.48 with oneDNN; at 512 rows 0.55 and 0.51. int8 weights at 1 row take 0.24 with ``_weight_int8pack_mm`` and 0.87
widened to fp32; at 128 rows of 384 x 1536 1.8 and 1.3 (``python -m benchmarks.kernels``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from search_spaces.choice import LayerChoice, Precision
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu import conv, embedding, int8_products, linear, recurrent
from workers.backends.cpu.fbgemm import has_fbgemm, packs_int8
from workers.backends.cpu.widened import WidenedFp16
from workers.backends.packed import PackedLayer
from workers.device.processor import Processor

#: Prepares a layer from its module, its choice, and its calibrated range if the choice needs one.
Prepare = Callable[[Any, LayerChoice, ActivationRange | None], PackedLayer]
#: Returns what the processor lacks to run a choice correctly and without emulation; None if it lacks nothing.
Lacks = Callable[[Processor, LayerChoice], str | None]


def nothing(processor: Processor, choice: LayerChoice) -> str | None:
    """Return None: a kernel that runs correctly on every processor lacks nothing."""
    return None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute some choices of some kinds of layers."""

    #: Name shown to people, such as ``onednn``; ``fp32`` widens weights and runs on every processor.
    name: str
    kinds: tuple[LayerKind, ...]
    #: Names of the choices it computes.
    choices: tuple[str, ...]
    #: Kernels of one choice with the same ``prepare`` share packed weights, so that a layer may use several of them.
    prepare: Prepare
    lacks: Lacks = nothing
    #: Divisors of the input and output features of linear layers.
    blocks: tuple[int, int] = (1, 1)


def _onednn(processor: Processor, choice: LayerChoice) -> str | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "needs oneDNN, which this build of PyTorch lacks"
    return processor.saturates(choice.weight_bits)


def _fbgemm(processor: Processor, choice: LayerChoice) -> str | None:
    if not has_fbgemm():
        return "needs FBGEMM, which PyTorch has on x86 processors with AVX2 only"
    if choice.precision is Precision.INT8 and not packs_int8():
        return "needs quantized tensors, which this version of PyTorch has removed; PyTorch 2.13 has them"
    if choice.precision is Precision.INT8 and choice.weight_bits == 8 and "avx512_vnni" not in processor.features:
        return "needs 512-bit VNNI, which this processor lacks; FBGEMM's products of 8-bit weights would saturate"
    return None


def _bf16(processor: Processor, choice: LayerChoice) -> str | None:
    return None if processor.has_bf16 else "needs AVX512-BF16 or AMX, which this processor lacks; bf16 would be slow"


_LINEAR = (LayerKind.LINEAR,)
_CONV = (LayerKind.CONV1D, LayerKind.CONV2D)
_TRANSPOSED = (LayerKind.CONV_TRANSPOSE1D, LayerKind.CONV_TRANSPOSE2D)
_RECURRENT = (LayerKind.LSTM, LayerKind.GRU)
_EMBEDDING, _BAG = (LayerKind.EMBEDDING,), (LayerKind.EMBEDDING_BAG,)
_W8A8 = ("int8_static", "int8_static_smooth", "int8_dynamic", "int8_dynamic_per_token")
_W8A8_CONV = ("int8_static", "int8_dynamic")
_W4 = ("int4_weight_only", "int4_weight_only_gptq")
_ROWS = ("int8_weight_only", "int4_weight_only")

#: The first kernel of a choice is the reference for the others; it runs on every processor if any kernel does.
KERNELS: tuple[Kernel, ...] = (
    Kernel("fp32", _LINEAR, _W8A8, partial(linear.int8_linear, product=int8_products.WidenedProduct)),
    Kernel("onednn", _LINEAR, _W8A8, partial(linear.int8_linear, product=int8_products.OneDnnProduct), _onednn),
    Kernel("fbgemm", _LINEAR, _W8A8, partial(linear.int8_linear, product=int8_products.FbgemmProduct), _fbgemm),
    Kernel("fp32", _LINEAR, ("int8_weight_only",), linear.Int8WeightOnlyLinear),
    Kernel("bf16", _LINEAR, ("int8_weight_only",), linear.Int8WeightOnlyLinear, _bf16),
    # It reads input features in blocks of 16, and reads out of bounds if they are not divisible (PyTorch 2.13).
    Kernel("int8pack", _LINEAR, ("int8_weight_only",), linear.Int8WeightOnlyLinear, blocks=(16, 1)),
    Kernel("fp32", _LINEAR, _W4, linear.WidenedInt4Linear),
    Kernel("int4pack", _LINEAR, _W4, linear.Int4WeightOnlyLinear, blocks=(1, 16)),
    Kernel("bf16", _LINEAR, ("bf16",), linear.Bf16Linear, _bf16),
    Kernel("fp32", _LINEAR, ("fp16",), WidenedFp16),
    Kernel("fbgemm", _LINEAR, ("fp16",), linear.FbgemmFp16Linear, _fbgemm),
    Kernel("fp32", _CONV, _W8A8_CONV, conv.WidenedInt8Conv),
    Kernel("onednn", _CONV, _W8A8_CONV, conv.Int8Conv, _onednn),
    Kernel("bf16", _CONV, ("bf16",), conv.Bf16Conv, _bf16),
    Kernel("bf16", _TRANSPOSED, ("bf16",), conv.Bf16ConvTranspose, _bf16),
    Kernel("fp32", (*_CONV, *_TRANSPOSED), ("fp16",), WidenedFp16),
    Kernel("bf16", _RECURRENT, ("bf16",), recurrent.Bf16Recurrent, _bf16),
    Kernel("fbgemm", _RECURRENT, ("fp16", "int8_dynamic"), recurrent.FbgemmRecurrent, _fbgemm),
    Kernel("lookup", _EMBEDDING, ("bf16", "fp16"), embedding.HalfEmbedding),
    Kernel("lookup", _EMBEDDING, _ROWS, embedding.RowwiseEmbedding),
    Kernel("lookup", _BAG, ("bf16", "fp16"), embedding.HalfEmbeddingBag),
    Kernel("lookup", _BAG, _ROWS, embedding.RowwiseEmbeddingBag),
)
