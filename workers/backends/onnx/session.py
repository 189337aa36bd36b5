"""Run an ONNX graph in ONNX Runtime as if it were the model."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch

from workers.backends.onnx.session_module import Array, SessionModule
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


class OnnxModule(SessionModule[onnxruntime.InferenceSession]):
    """A session of ONNX Runtime that is called like the model it was exported from."""

    def __init__(self, session: onnxruntime.InferenceSession, arguments: Sequence[int | str], form: str) -> None:
        super().__init__(session, arguments, form)
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]

    def _compute(self, inputs: Sequence[Array]) -> dict[str, Array]:
        results = self.session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))
        return dict(zip(self._outputs, results, strict=True))
