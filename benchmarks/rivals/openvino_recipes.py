"""NNCF's recipes for OpenVINO. Each returns a model of OpenVINO."""

import functools
import io
from collections.abc import Iterable
from typing import Any

import nncf
import openvino
import torch

from benchmarks.rivals.artefacts import openvino_model
from benchmarks.rivals.subject import Subject


def full_precision(subject: Subject) -> openvino.Model:
    """Return the model in full precision."""
    return openvino.Core().read_model(io.BytesIO(subject.onnx()))


def quantized(subject: Subject, *, preset: nncf.QuantizationPreset) -> openvino.Model:
    """Return what ``nncf.quantize`` makes of the model."""
    return nncf.quantize(full_precision(subject), _dataset(subject.calibration()), preset=preset, **_common(subject))


def accuracy_controlled(subject: Subject, *, preset: nncf.QuantizationPreset) -> openvino.Model:
    """Return what ``nncf.quantize_with_accuracy_control`` makes of the model under the subject's limit."""

    def validate(compiled: Any, _: Iterable[Any]) -> tuple[float, None]:
        return subject.accuracy(openvino_model(compiled, subject)), None

    return nncf.quantize_with_accuracy_control(
        full_precision(subject), _dataset(subject.calibration()), _dataset(subject.evaluation()), validate,
        max_drop=subject.most_drop, drop_type=nncf.DropType.RELATIVE, preset=preset, **_common(subject),
    )  # fmt: skip


def compressed(subject: Subject, *, mode: nncf.CompressWeightsMode) -> openvino.Model:
    """Return the model with weights that ``nncf.compress_weights`` rounds; activations stay as they are."""
    return nncf.compress_weights(full_precision(subject), mode=mode)


def _dataset(calls: list[tuple[torch.Tensor, ...]]) -> nncf.Dataset:
    return nncf.Dataset([[tensor.numpy() for tensor in tensors] for tensors in calls])


def _common(subject: Subject) -> dict[str, Any]:
    transformer = any(isinstance(module, torch.nn.LayerNorm) for module in subject.model.modules())
    return {
        "target_device": nncf.TargetDevice.CPU,
        "model_type": nncf.ModelType.TRANSFORMER if transformer else None,
        "subset_size": max(1, len(subject.task.calibration())),
    }


_PERFORMANCE, _MIXED = nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED
#: Name -> function that returns a model.
RECIPES = {
    "fp32": full_precision,
    "quantize": functools.partial(quantized, preset=_PERFORMANCE),
    "quantize mixed": functools.partial(quantized, preset=_MIXED),
    "accuracy control": functools.partial(accuracy_controlled, preset=_PERFORMANCE),
    "accuracy control mixed": functools.partial(accuracy_controlled, preset=_MIXED),
    "compress weights int8": functools.partial(compressed, mode=nncf.CompressWeightsMode.INT8_ASYM),
    "compress weights int4": functools.partial(compressed, mode=nncf.CompressWeightsMode.INT4_SYM),
}
