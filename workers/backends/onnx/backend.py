"""The ONNX Runtime backend: whole maps run as sessions on the CPU; PyTorch only emulates single layers."""

from collections.abc import Sequence

from torch import nn

from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.base import Deployed
from workers.backends.onnx import choices, layer_bytes
from workers.backends.onnx.graph_backend import GraphBackend
from workers.backends.packed import range_of
from workers.backends.rounding.bias_correction import corrected
from workers.libraries import missing, optional_libraries
from workers.model.prepared import PreparedModel
from workers.task import Task

_USER = "the backend onnxruntime"


class OnnxRuntimeBackend(GraphBackend):
    """Runs the whole graph of each map in ONNX Runtime, on the CPU."""

    name = "onnxruntime"
    libraries: tuple[str, ...] = ("onnxruntime",)

    def unavailable(self) -> str | None:
        return missing(("onnx", "onnxruntime", "onnxscript"), "export")

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if choice == FULL_PRECISION:
            return None
        if choice.precision in (Precision.BF16, Precision.FP16):
            return (
                f"ONNX Runtime's CPU provider widens {choice.precision} weights to fp32 when it loads them, so they "
                "would save neither time nor memory"
            )
        return layer.frozen_reason or choices.refuses(layer, choice) or self._saturates(choice)

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[tuple[int, ...]] = (),
        kernel: str | None = None,
    ) -> nn.Module:
        """See ``Backend.prepare``.

        Raises:
            CalibrationError: if the choice needs calibration and there is no range.
        """
        needed = range_of(choice, input_range)
        with optional_libraries(_USER, "export"):
            from workers.backends.onnx.fragments import fragment
            from workers.backends.onnx.layer import OnnxLayer

            layer = corrected(module, choice, input_range)
            return OnnxLayer(layer, choice, needed, fragment(layer, choice, needed)).eval()

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        return layer_bytes.layer_bytes(layer, choice)

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        with optional_libraries(_USER, "export"):
            from workers.backends.onnx.deployed import OnnxDeployed

            return OnnxDeployed(task, prepared, batch_sizes)
