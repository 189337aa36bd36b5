"""The torchao backend: layers on a CUDA GPU, run eagerly or compiled."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from search_spaces.choice import LayerChoice, Method, Precision
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.eager import EagerBackend
from workers.backends.packed import PackedLayer, range_of
from workers.backends.rounding.bias_correction import corrected
from workers.backends.smoothed import SmoothedLinear
from workers.backends.torchao import support
from workers.device import environment, gpu
from workers.device.processor import this_processor
from workers.libraries import missing, optional_libraries

_HALVES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class TorchAoBackend(EagerBackend):
    """Runs layers on torchao's tensors, and on PyTorch's own CUDA kernels for choices that torchao lacks."""

    libraries: tuple[str, ...] = ("torchao",)

    def __init__(self, device: str = "cuda", *, compiler: str | None = None) -> None:
        """Take a device and, to compile layers, the backend of ``torch.compile``.

        On the device ``cpu`` the same code runs with CPU kernels, for tests rather than for speed.
        """
        # The two modes count as separate backends, because their figures are not comparable.
        self.name = "torchao" if compiler is None else "torchao-compiled"
        self.device = device
        self._compiler = compiler

    def unavailable(self) -> str | None:
        absent = missing(("torchao",), "export")
        if absent or self.device == "cpu":
            return absent
        if torch.version.cuda is None:
            return f"needs a build of PyTorch with CUDA, but this is {torch.__version__}; install one, or use cpu"
        if not torch.cuda.is_available():
            return "needs a CUDA device, but PyTorch sees none; use cpu, or assign GPUs to workers with workers.gpus"
        return None

    def hardware(self) -> str:
        if self.device == "cpu":
            return environment.cpu_hardware()
        return gpu.hardware()

    def int8_weight_bits(self, layer: Layer) -> int:
        return this_processor().int8_weight_bits if self.device == "cpu" else 8

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if self.device != "cpu":
            return support.refuses(gpu.capability(), layer, choice)
        reason = support.refuses(None, layer, choice)
        return reason or (this_processor().saturates(choice.weight_bits) if choice.needs_int8_products else None)

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[tuple[int, ...]] = (),
        kernel: str | None = None,
    ) -> nn.Module:
        """See ``Backend.prepare``; the prepared module is on the backend's device.

        Raises:
            CalibrationError: if the choice needs calibration and there is no range.
        """
        needed = range_of(choice, input_range)
        with optional_libraries("the backend torchao", "export"), torch.no_grad():
            return self._prepare(corrected(module, choice, input_range), choice, needed).eval()

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        return support.layer_bytes(layer, choice)

    def _prepare(self, module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> PackedLayer:
        from workers.backends.torchao.layers import HalfLayer, Int4Linear, QuantizedLinear

        if choice.precision in _HALVES:
            return HalfLayer(module, _HALVES[choice.precision], self.device)
        assert isinstance(module, nn.Linear)
        if choice.precision is Precision.INT4:
            return Int4Linear(module, input_range, self.device, self._compile)
        if choice.is_smooth:
            assert input_range is not None
            plain = dataclasses.replace(choice, method=Method.PLAIN)
            return SmoothedLinear(
                module, input_range, lambda inner, divided: self._prepare(inner, plain, divided), self.device
            )
        return QuantizedLinear(module, choice, input_range, self.device, self._compile)

    @functools.cached_property
    def _compile(self) -> Callable[..., Any]:
        from workers.backends.torchao.layers import regional, uncompiled

        return uncompiled if self._compiler is None else regional(self._compiler)
