"""The OpenVINO backend: whole maps run as compiled models on the CPU; PyTorch only emulates single layers."""

from collections.abc import Sequence

from torch import nn

from search_spaces.choice import LayerChoice, Precision
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.base import Deployed
from workers.backends.onnx.graph_backend import GraphBackend
from workers.backends.openvino import choices
from workers.backends.packed import range_of
from workers.backends.rounding.bias_correction import corrected
from workers.libraries import missing, optional_libraries
from workers.model.prepared import PreparedModel
from workers.task import Task

_USER, _EXTRA = "the backend openvino", "openvino"


class OpenVinoBackend(GraphBackend):
    """Runs the whole graph of each map in OpenVINO, on the CPU."""

    name = "openvino"
    libraries: tuple[str, ...] = ("openvino",)

    def unavailable(self) -> str | None:
        return missing(("onnx", "onnxscript", "openvino"), _EXTRA)

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if choice.precision is Precision.BF16 and not self._processor.has_bf16:
            return "OpenVINO multiplies bf16 only on processors with AVX512-BF16 or AMX-BF16, which this one lacks"
        return choices.refuses(layer, choice) or self._saturates(choice)

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
        with optional_libraries(_USER, _EXTRA):
            from workers.backends.openvino.layer import OpenVinoLayer

            return OpenVinoLayer(corrected(module, choice, input_range), choice, needed).eval()

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        return choices.layer_bytes(layer, choice)

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        with optional_libraries(_USER, _EXTRA):
            from workers.backends.openvino.deployed import OpenVinoDeployed

            return OpenVinoDeployed(task, prepared, batch_sizes)
