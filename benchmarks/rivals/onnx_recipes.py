"""ONNX Runtime's own tools, and Neural Compressor's search over them. Each writes ``model.onnx`` into a folder."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.rivals.artefacts import onnx_model
from benchmarks.rivals.subject import Subject

MODEL = "model.onnx"


class Feeds(CalibrationDataReader):
    """The calibration data as ONNX Runtime's tools read them."""

    def __init__(self, subject: Subject) -> None:
        names = subject.input_names
        self._feeds = [
            {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            for tensors in subject.calibration()
        ]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch; None after the last one."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Start again."""
        self._left: Iterator[dict[str, np.ndarray]] = iter(self._feeds)


def full_precision(subject: Subject, folder: Path) -> None:
    """Write the model in full precision."""
    (folder / MODEL).write_bytes(subject.onnx())


def dynamic(subject: Subject, folder: Path, *, per_channel: bool, fused: bool = False) -> None:
    """Write the model with int8 weights and dynamic activations.

    ``fused`` applies the fusions of transformers first, as ONNX Runtime advises for these models.
    """
    prepared = _fused(subject, folder) if fused else _preprocessed(subject, folder)
    quantize_dynamic(prepared, folder / MODEL, per_channel=per_channel, weight_type=QuantType.QInt8)
    prepared.unlink()


def static(subject: Subject, folder: Path, *, method: CalibrationMethod) -> None:
    """Write the model with int8 weights, one scale per channel, and static activations."""
    prepared = _preprocessed(subject, folder)
    quantize_static(
        prepared, folder / MODEL, Feeds(subject), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=method,
    )  # fmt: skip
    prepared.unlink()


def autotuned(subject: Subject, folder: Path) -> None:
    """Write the first model of Neural Compressor's lists that keeps the limit, static ones first.

    Raises:
        RuntimeError: if none does.
    """
    import onnx
    from onnx_neural_compressor.quantization import config, tuning

    full = folder / "full.onnx"
    full.write_bytes(subject.onnx())
    static_set = config.StaticQuantConfig.get_config_set_for_tuning(quant_format=QuantFormat.QDQ)
    dynamic_set = config.DynamicQuantConfig.get_config_set_for_tuning()
    found = tuning.autotune(
        model_input=str(full),
        tune_config=tuning.TuningConfig(
            config_set=[*static_set, *dynamic_set], tolerable_loss=subject.most_drop, max_trials=100
        ),
        eval_fn=lambda path: subject.accuracy(onnx_model(Path(path), subject)),
        calibration_data_reader=Feeds(subject),
    )
    full.unlink()
    if found is None:
        raise RuntimeError("no configuration keeps the limit")
    onnx.save(found, folder / MODEL)


def _preprocessed(subject: Subject, folder: Path) -> Path:
    """Write the model in full precision, with shapes and ONNX Runtime's own fusions."""
    traced, prepared = folder / "traced.onnx", folder / "prepared.onnx"
    traced.write_bytes(subject.onnx())
    quant_pre_process(traced, prepared, skip_symbolic_shape=True)
    traced.unlink()
    return prepared


def _fused(subject: Subject, folder: Path) -> Path:
    """Write the model in full precision, with the fusions of transformers."""
    from onnxruntime.transformers.optimizer import optimize_model

    traced, prepared = folder / "traced.onnx", folder / "prepared.onnx"
    traced.write_bytes(subject.onnx())
    optimize_model(str(traced), model_type="bert").save_model_to_file(str(prepared))
    traced.unlink()
    return prepared


#: Name -> function that writes the model into a folder.
RECIPES = {
    "fp32": full_precision,
    "dynamic": functools.partial(dynamic, per_channel=False),
    "dynamic per channel": functools.partial(dynamic, per_channel=True),
    "dynamic fused": functools.partial(dynamic, per_channel=True, fused=True),
    "static min-max": functools.partial(static, method=CalibrationMethod.MinMax),
    "static percentile": functools.partial(static, method=CalibrationMethod.Percentile),
    "autotune": autotuned,
}
