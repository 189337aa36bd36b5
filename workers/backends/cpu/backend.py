"""The CPU backend: PyTorch's own kernels, run eagerly."""

from collections.abc import Sequence

import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION, ActivationMode, LayerChoice, Precision
from search_spaces.discovery import kind_of
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu import layer_bytes
from workers.backends.cpu.kernels import KERNELS, Kernel, nothing
from workers.backends.cpu.selection import Pick, Shape, fastest, named, only
from workers.backends.eager import EagerBackend
from workers.backends.packed import range_of
from workers.backends.rounding.bias_correction import corrected
from workers.backends.rounding.weights import INT4_GROUP
from workers.device import environment
from workers.device.processor import this_processor

#: Numbers of input rows for choosing the kernels of a layer with unknown input shapes: one token, and a text.
_USUAL_ROWS = (1, 128)

_W8A8 = CHOICES["int8_dynamic"]

#: Picks timed in this process: layer, choice, kernels, shapes and threads -> the pick.
_timed: dict[tuple[object, ...], Pick] = {}


class CpuBackend(EagerBackend):
    """Runs layers with the kernels that PyTorch ships for CPUs."""

    name = "cpu"
    device = "cpu"
    libraries: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._processor = this_processor()

    def unavailable(self) -> str | None:
        return None

    def hardware(self) -> str:
        return environment.cpu_hardware()

    def int8_weight_bits(self, layer: Layer) -> int:
        products = [kernel for kernel in _computing(layer.kind, _W8A8) if kernel.lacks is not nothing]
        exact = (
            bits
            for bits in (8, 7)
            if any(kernel.lacks(self._processor, _W8A8.with_weight_bits(bits)) is None for kernel in products)
        )
        return next(exact, 8)

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if choice == FULL_PRECISION:
            return None
        return layer.frozen_reason or _layer_refuses(layer, choice) or self._processor_refuses(layer, choice)

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[Shape] = (),
        kernel: str | None = None,
    ) -> nn.Module:
        """See ``Backend.prepare``.

        Raises:
            CalibrationError: if the choice needs calibration and there is no range.
        """
        needed = range_of(choice, input_range)
        with torch.no_grad():
            pick = self._pick(module, choice, shapes, kernel)
            prepared = pick.prepare(corrected(module, choice, input_range), choice, needed).eval()
        prepared.kernel = pick.name
        return prepared

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[Shape], known: str | None = None
    ) -> str | None:
        return self._pick(module, choice, shapes, known).name

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        return layer_bytes.layer_bytes(layer, choice)

    def _pick(self, module: nn.Module, choice: LayerChoice, shapes: Sequence[Shape], known: str | None) -> Pick:
        """Return the kernels for a layer and choice: the known ones, else the fastest, timed once per process."""
        kind = kind_of(module)
        assert kind is not None
        kernels = [kernel for kernel in self._usable(kind, choice) if _fits(kernel, module)]
        if isinstance(module, nn.Linear) and not shapes:
            shapes = [(rows, module.in_features) for rows in _USUAL_ROWS]
        if len(kernels) == 1 or not shapes:
            return only(kernels[-1], shapes)
        if known is not None and (recalled := named(known, kernels, shapes)) is not None:
            return recalled
        timed = _timed_as(choice)
        key = (kind, module.extra_repr(), timed, tuple(k.name for k in kernels), tuple(shapes), torch.get_num_threads())
        if key not in _timed:
            _timed[key] = fastest(module, timed, kernels, shapes)
        return _timed[key]

    def _usable(self, kind: LayerKind, choice: LayerChoice) -> list[Kernel]:
        return [kernel for kernel in _computing(kind, choice) if kernel.lacks(self._processor, choice) is None]

    def _processor_refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        computing = _computing(layer.kind, choice)
        if not computing:
            able = [name for name, other in CHOICES.items() if _computing(layer.kind, other)]
            return f"no CPU kernel computes {choice.name} {layer.kind} layers; they take fp32, {', '.join(able)}"
        return None if self._usable(layer.kind, choice) else computing[0].lacks(self._processor, choice)


def _computing(kind: LayerKind, choice: LayerChoice) -> list[Kernel]:
    return [kernel for kernel in KERNELS if kind in kernel.kinds and choice.name in kernel.choices]


def _timed_as(choice: LayerChoice) -> LayerChoice:
    """Return the choice to time in place of another one that uses the same kernels, so that both get the same pick."""
    if choice.needs_int8_products and not choice.is_per_token:
        return CHOICES["int8_static"].with_weight_bits(choice.weight_bits)
    return CHOICES["int4_weight_only"] if choice.is_gptq else choice


def _fits(kernel: Kernel, module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear):
        return True
    inputs, outputs = kernel.blocks
    return module.in_features % inputs == 0 and module.out_features % outputs == 0


def _layer_refuses(layer: Layer, choice: LayerChoice) -> str | None:
    """Return why no kernel on any processor runs this layer with the choice."""
    if layer.kind.looks_up and choice.activation is not ActivationMode.NONE:
        return "embeddings take integer indices, so there is no activation to quantize"
    if layer.kind in (LayerKind.LSTM, LayerKind.GRU) and choice.needs_calibration:
        return "hidden states are inputs too, and kernels compute their range only at each step; use int8_dynamic"
    if layer.kind.is_transposed and choice.precision is Precision.INT8:
        return "PyTorch's int8 kernels of transposed convolutions are wrong for some shapes, or slower than fp32"
    return _int4_refuses(layer) if choice.precision is Precision.INT4 else None


def _int4_refuses(layer: Layer) -> str | None:
    if layer.kind not in (LayerKind.LINEAR, LayerKind.EMBEDDING, LayerKind.EMBEDDING_BAG):
        return None
    features = layer.weight_shape[1]
    if layer.kind.looks_up:
        return f"int4 rows hold two features per byte, but this embedding has {features}" if features % 2 else None
    if features % INT4_GROUP:
        return f"int4 needs input features divisible by {INT4_GROUP}, but this layer has {features}"
    return None
