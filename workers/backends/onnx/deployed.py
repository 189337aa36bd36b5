"""A whole model in ONNX Runtime."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime

from workers.backends.onnx import profiling
from workers.backends.onnx.attention import fused_attention
from workers.backends.onnx.graph import Graph, Traced, serialized, trace
from workers.backends.onnx.session import OnnxModule, open_session
from workers.backends.onnx.whole_graph import WholeGraph
from workers.model.prepared import PreparedModel
from workers.task import Task


class OnnxDeployed(WholeGraph[onnxruntime.InferenceSession]):
    """See ``Deployed``."""

    def working_bytes(self, run: Callable[[], object]) -> int:
        return profiling.working_bytes(self._profiled(run, passes=1)[0])

    def _trace(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Traced:
        return trace(task, prepared.model, prepared.layers, batch_sizes, attention=fused_attention)

    def _open(self, graph: Graph) -> onnxruntime.InferenceSession:
        return open_session(serialized(graph))

    def _module(self, session: onnxruntime.InferenceSession, arguments: Sequence[int | str], form: str) -> OnnxModule:
        return OnnxModule(session, arguments, form)

    def _layers_ms(self, run: Callable[[], object], layers: Sequence[str], passes: int) -> list[dict[str, float]]:
        return [profiling.layer_ms(events, layers) for events in self._profiled(run, passes=passes)]

    def _profiled(self, run: Callable[[], object], *, passes: int) -> list[profiling.Events]:
        """Return the profile of each pass through a new session of the installed map."""
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(serialized(self._graph()), profile=Path(folder, "profile"))
            self.model.session, usual = session, self.model.session
            try:
                for _ in range(passes):
                    run()
            finally:
                self.model.session = usual
                written = Path(session.end_profiling())
            calls = profiling.read_calls(written)
        # A task may call its model more than once per pass.
        each = len(calls) // passes
        starts = range(0, len(calls), each)
        return [[event for call in calls[start : start + each] for event in call] for start in starts]
