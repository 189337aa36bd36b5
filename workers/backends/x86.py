"""The x86 CPU backend: PyTorch's own bf16, int8 and int4 kernels, run eagerly."""

import platform
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers import environment
from workers.backends import x86_bytes
from workers.backends.bias_correction import corrected
from workers.backends.eager import EagerBackend
from workers.backends.packed import PackedLayer, range_of
from workers.backends.smoothed import SmoothedLinear
from workers.backends.weight_quantization import INT4_GROUP
from workers.backends.x86_conv import Bf16Conv, Bf16ConvTranspose, Int8Conv
from workers.backends.x86_embedding import Bf16Embedding, Bf16EmbeddingBag, RowwiseEmbedding, RowwiseEmbeddingBag
from workers.backends.x86_linear import (
    Bf16Linear,
    Int4WeightOnlyLinear,
    Int8Linear,
    Int8PerTokenLinear,
    Int8WeightOnlyLinear,
)
from workers.backends.x86_recurrent import Bf16Recurrent, Int8Recurrent

#: What x86-64 processors are called.
X86_MACHINES = ("x86_64", "AMD64")

#: Prepares a layer from its module and its calibrated range, which only static choices have.
_Prepare = Callable[..., PackedLayer]

_CONV: dict[str, _Prepare] = {
    "bf16": lambda module, _: Bf16Conv(module),
    "int8_static": Int8Conv,
    "int8_dynamic": Int8Conv,
}
_CONV_TRANSPOSE: dict[str, _Prepare] = {"bf16": lambda module, _: Bf16ConvTranspose(module)}
_RECURRENT: dict[str, _Prepare] = {
    "bf16": lambda module, _: Bf16Recurrent(module),
    "int8_dynamic": lambda module, _: Int8Recurrent(module),
}
#: Layer type -> choice -> how the layer is prepared.
_KERNELS: dict[LayerKind, dict[str, _Prepare]] = {
    LayerKind.LINEAR: {
        "bf16": lambda module, _: Bf16Linear(module),
        "int8_static": Int8Linear,
        "int8_static_smooth": lambda module, calibrated: SmoothedLinear(module, calibrated, Int8Linear),
        "int8_dynamic": Int8Linear,
        "int8_dynamic_per_token": Int8PerTokenLinear,
        "int8_weight_only": lambda module, _: Int8WeightOnlyLinear(module),
        "int4_weight_only": Int4WeightOnlyLinear,
        "int4_weight_only_gptq": Int4WeightOnlyLinear,
    },
    LayerKind.CONV1D: _CONV,
    LayerKind.CONV2D: _CONV,
    LayerKind.CONV_TRANSPOSE1D: _CONV_TRANSPOSE,
    LayerKind.CONV_TRANSPOSE2D: _CONV_TRANSPOSE,
    LayerKind.EMBEDDING: {
        "bf16": lambda module, _: Bf16Embedding(module),
        "int8_weight_only": lambda module, _: RowwiseEmbedding(module, 8),
        "int4_weight_only": lambda module, _: RowwiseEmbedding(module, 4),
    },
    LayerKind.EMBEDDING_BAG: {
        "bf16": lambda module, _: Bf16EmbeddingBag(module),
        "int8_weight_only": lambda module, _: RowwiseEmbeddingBag(module, 8),
        "int4_weight_only": lambda module, _: RowwiseEmbeddingBag(module, 4),
    },
    LayerKind.LSTM: _RECURRENT,
    LayerKind.GRU: _RECURRENT,
}
_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LayerKind.LINEAR,
    nn.Conv1d: LayerKind.CONV1D,
    nn.Conv2d: LayerKind.CONV2D,
    nn.ConvTranspose1d: LayerKind.CONV_TRANSPOSE1D,
    nn.ConvTranspose2d: LayerKind.CONV_TRANSPOSE2D,
    nn.Embedding: LayerKind.EMBEDDING,
    nn.EmbeddingBag: LayerKind.EMBEDDING_BAG,
    nn.LSTM: LayerKind.LSTM,
    nn.GRU: LayerKind.GRU,
}


class X86Backend(EagerBackend):
    """Runs layers with the kernels PyTorch ships for x86 CPUs."""

    name = "x86"
    device = "cpu"
    libraries: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._features = torch.cpu.get_capabilities()
        with warnings.catch_warnings():
            # PyTorch warns once a process that quantized tensors will go some day; the int8 kernels have
            # no other way in yet (pytorch issue 184982). Users cannot act on it, so it is spent here.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
            torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)

    def unavailable(self) -> str | None:
        """See ``Backend.unavailable``."""
        if platform.machine() not in X86_MACHINES:
            return f"needs an x86-64 processor, but this is {platform.machine()}"
        return None if self._features.get("avx2") else "needs AVX2, which this processor lacks"

    def hardware(self) -> str:
        """See ``Backend.hardware``."""
        return f"{environment.cpu_name()}, {environment.usable_cores()} cores"

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """See ``Backend.refuses``."""
        if choice == FULL_PRECISION:
            return None
        return layer.frozen_reason or self._hardware_refuses(choice) or _layer_refuses(layer, choice)

    def prepare(self, module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> nn.Module:
        """See ``Backend.prepare``.

        Raises:
            CalibrationError: if the choice is static and there is no range.
        """
        if choice == FULL_PRECISION:
            return module
        needed = range_of(choice, input_range)
        kind = next(kind for cls, kind in _KINDS.items() if isinstance(module, cls))
        with torch.no_grad():
            return _KERNELS[kind][choice.name](corrected(module, choice, input_range), needed).eval()

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        """See ``Backend.layer_bytes``."""
        return x86_bytes.layer_bytes(layer, choice)

    def _hardware_refuses(self, choice: LayerChoice) -> str | None:
        if choice.precision is Precision.BF16 and not (
            self._features.get("avx512_bf16") or self._features.get("amx_bf16")
        ):
            return "needs AVX512-BF16 or AMX, which this processor lacks; bf16 would be emulated and slow"
        return int8_refusal(self._features) if choice.needs_int8_products else None


def int8_refusal(features: Mapping[str, bool]) -> str | None:
    """Return why no 8-bit products should run on an x86 processor, or None if they should."""
    # Without VNNI the 16-bit sums of two products saturate and outputs are wrong.
    if features.get("avx512_vnni") or features.get("avx_vnni"):
        return None
    return "needs VNNI, which this processor lacks; 8-bit products would saturate"


def _layer_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why no kernel runs this layer with the choice on any x86 processor."""
    if layer.kind.looks_up and choice.activation is not ActivationMode.NONE:
        return "embeddings take integer indices, so there is no activation to quantize"
    if layer.kind in (LayerKind.LSTM, LayerKind.GRU) and choice.needs_calibration:
        return "hidden states are inputs too, and kernels take their range at each step only; take int8_dynamic"
    if layer.kind.is_transposed and choice.precision is Precision.INT8:
        return "PyTorch's int8 kernels of transposed convolutions are wrong for some shapes, or slower than fp32"
    kernels = _KERNELS[layer.kind]
    if choice.name not in kernels:
        return f"x86 has no {choice.name} kernel for {layer.kind} layers; they take fp32, {', '.join(kernels)}"
    return _int4_refuses(layer) if choice.precision is Precision.INT4 else None


def _int4_refuses(layer: Layer) -> str | None:
    outputs, features = layer.weight_shape
    if layer.kind.looks_up:
        return f"int4 rows hold two features a byte, but this embedding has {features}" if features % 2 else None
    if features % INT4_GROUP:
        return f"int4 needs input features divisible by {INT4_GROUP}, but this layer has {features}"
    if outputs % 16:
        return f"the int4 kernel needs output features divisible by 16, but this layer has {outputs}"
    return None
