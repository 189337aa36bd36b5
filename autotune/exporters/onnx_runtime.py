"""Run an ONNX file in ONNX Runtime as if it were the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from autotune.errors import ExportError
from autotune.exporters.calls import in_form

#: Only errors are logged; warnings are about the file's metadata.
_LOG_ERRORS = 3


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with as many threads as PyTorch uses.

    Raises:
        ExportError: if ONNX Runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _LOG_ERRORS
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but this one
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot load {str(path)!r}: {error}") from error


class OnnxModule(nn.Module):
    """A session that is called like the model it was exported from."""

    def __init__(self, path: Path, arguments: Sequence[int | str], form: str) -> None:
        super().__init__()
        self._session = open_session(path)
        self._arguments = arguments
        self._form = form
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs in the form the model returns them."""
        given = (args[key] if isinstance(key, int) else kwargs[key] for key in self._arguments)
        feed = {name: tensor.numpy() for name, tensor in zip(self._inputs, given, strict=True)}
        results = self._session.run(self._outputs, feed)
        tensors = (torch.from_numpy(result) for result in results)
        return in_form(self._form, dict(zip(self._outputs, tensors, strict=True)))
