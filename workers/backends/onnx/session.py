"""Run an ONNX graph in ONNX Runtime as if it were the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from workers.backends.onnx.signature import in_form
from workers.device.threads import OtherRuntime
from workers.errors import BackendError

#: Log errors only, because warnings concern the file's metadata.
_LOG_ERRORS = 3


def open_session(graph: Path | bytes, *, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with as many threads as PyTorch.

    Args:
        graph: path of a file, or its content.
        profile: prefix of the file that ``end_profiling`` writes; None disables profiling.

    Raises:
        BackendError: if ONNX Runtime rejects the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _LOG_ERRORS
    # Otherwise its threads spin for milliseconds after a pass, and slow down the model that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        what = repr(str(graph)) if isinstance(graph, Path) else "the graph of the map"
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load {what}: {error}") from error


class OnnxModule(OtherRuntime):
    """A session that is called like the model it was exported from."""

    def __init__(self, session: onnxruntime.InferenceSession, arguments: Sequence[int | str], form: str) -> None:
        super().__init__()
        #: The session that runs; it may be replaced by another session of the same model.
        self.session = session
        self._arguments = arguments
        self._form = form
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs in the same form as the original model."""
        given = (args[key] if isinstance(key, int) else kwargs[key] for key in self._arguments)
        feed = {name: tensor.numpy() for name, tensor in zip(self._inputs, given, strict=True)}
        results = self.session.run(self._outputs, feed)
        tensors = (torch.from_numpy(result) for result in results)
        return in_form(self._form, dict(zip(self._outputs, tensors, strict=True)))
