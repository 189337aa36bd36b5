"""The ONNX Runtime backend: whole maps run as sessions on the CPU; PyTorch only computes what a layer would."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers import environment
from workers.backends import onnx_bytes
from workers.backends.activation_quantization import ZERO_OF_ROWS, affine_of, scales_of_rows, to_steps
from workers.backends.base import Deployed
from workers.backends.bias_correction import corrected
from workers.backends.packed import PackedLayer, range_of, weight_bytes
from workers.backends.weight_quantization import rounded
from workers.libraries import missing, optional_libraries
from workers.onnx import choices
from workers.prepared import PreparedModel
from workers.processor import this_processor
from workers.task import Task

_USER = "the backend onnxruntime"


class OnnxLayer(PackedLayer):
    """A layer as a part of a graph.

    Called, it computes in PyTorch what its nodes compute: with the weights that the stored ones stand for, and the
    input rounded to the same integers. Products are taken in fp32, so that outputs differ in their last bits.
    """

    def __init__(self, original: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        from workers.onnx.layers import fragment

        super().__init__(original)
        #: Nodes and constants.
        self.fragment = fragment(original, choice, input_range)
        self.packed_bytes = self.fragment.nbytes
        # In a list, so that the original's weights are no parameters of this layer.
        self._original = [original]
        self._choice = choice
        self._moments = input_range.moments if choice.is_gptq and input_range is not None else None
        smoothing = input_range.smoothing if choice.is_smooth and input_range is not None else None
        self._factors = None if smoothing is None else torch.tensor(smoothing.factors)
        calibrated = input_range if smoothing is None else smoothing.range
        self._affine = None if calibrated is None else calibrated.affine_uint8()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the nodes compute of ``x``."""
        (original,) = self._original
        assert isinstance(original.weight, torch.Tensor)
        full = original.weight
        if self._factors is not None:
            x, full = x * self._factors.reciprocal(), full * self._factors
        stored = rounded(full, self._choice, self._moments, by_row=isinstance(original, nn.Embedding))
        weight = torch.empty_like(original.weight).copy_(stored)  # in its memory format
        if self._choice.needs_int8_products:
            x = self._rounded(x)
        result: torch.Tensor = functional_call(original, {"weight": weight}, (x,))
        return result

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self._choice.is_per_token:
            scales = scales_of_rows(x)
            return to_steps(x / scales, 1.0, ZERO_OF_ROWS) * scales
        scale, zero_point = self._affine or affine_of(x)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


class OnnxRuntimeBackend:
    """Runs the whole graph of each map in ONNX Runtime, on the CPU."""

    name = "onnxruntime"
    device = "cpu"
    libraries: tuple[str, ...] = ("onnxruntime",)
    runs_modules = False

    def __init__(self) -> None:
        self._processor = this_processor()

    def unavailable(self) -> str | None:
        """See ``Backend.unavailable``."""
        return missing(("onnx", "onnxruntime", "onnxscript"), "export")

    def hardware(self) -> str:
        """See ``Backend.hardware``."""
        return environment.cpu_hardware()

    def int8_weight_bits(self, layer: Layer) -> int:
        """See ``Backend.int8_weight_bits``."""
        return self._processor.int8_weight_bits

    def kernel(self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]]) -> str | None:
        """See ``Backend.kernel``; which kernel runs is ONNX Runtime's own matter."""
        return None

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """See ``Backend.refuses``."""
        if choice == FULL_PRECISION:
            return None
        if choice.precision in (Precision.BF16, Precision.FP16):
            return (
                f"ONNX Runtime's CPU provider widens {choice.precision} weights to fp32 when it loads them, so they "
                "would save neither time nor memory"
            )
        return layer.frozen_reason or choices.refuses(layer, choice) or self._processor_refuses(choice)

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> nn.Module:
        """See ``Backend.prepare``.

        Raises:
            CalibrationError: if the choice is static and there is no range.
        """
        if choice == FULL_PRECISION:
            return module
        needed = range_of(choice, input_range)
        with optional_libraries(_USER, "export"):
            return OnnxLayer(corrected(module, choice, input_range), choice, needed).eval()

    def weight_bytes(self, prepared: nn.Module) -> int:
        """See ``Backend.weight_bytes``."""
        return weight_bytes(prepared)

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        """See ``Backend.layer_bytes``."""
        return onnx_bytes.layer_bytes(layer, choice)

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        """See ``Backend.deploy``."""
        with optional_libraries(_USER, "export"):
            from workers.onnx.deployed import OnnxDeployed

            return OnnxDeployed(task, prepared, batch_sizes)

    def _processor_refuses(self, choice: LayerChoice) -> str | None:
        reason = self._processor.saturates(choice.weight_bits) if choice.needs_int8_products else None
        return reason and f"{reason}, so run a new job here, whose weights have 7 bits"
