"""A whole model as ONNX graphs: every map has its own session, assembled from parts that are built once."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from search_spaces.choice import FULL_PRECISION
from search_spaces.layer import Layer
from workers.backends.onnx.builder import Fragment
from workers.backends.onnx.choices import has_place
from workers.backends.onnx.fragments import fragment
from workers.backends.onnx.graph import Graph, Traced, constant_bytes, trace
from workers.backends.onnx.layer import OnnxLayer
from workers.backends.onnx.session_module import SessionModule
from workers.errors import BackendError
from workers.model.prepared import PreparedModel
from workers.progress import Report, Stage, counted, silent
from workers.task import Task
from workers.timing.layer_latency import by_shape

#: Passes per profiled session, and how many of the first are not counted.
_PASSES, _COLD = 12, 2

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened(Generic[S]):
    """A session and its map."""

    names: Mapping[str, str]
    session: S
    #: Seconds that creating the session took.
    seconds: float


class WholeGraph(ABC, Generic[S]):
    """See ``Deployed``. It keeps two sessions: that of full precision and that of the last other map."""

    def __init__(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> None:
        """Trace the model and create the session of full precision.

        Raises:
            BackendError: if the model cannot be converted into a graph, or the runtime rejects it.
        """
        self._prepared = prepared
        prepared.reset()
        self._traced = self._trace(task, prepared, batch_sizes)
        graph, nodes = self._traced.filled(self._fragments())
        missing = [layer for layer, names in nodes.items() if not names]
        if missing:
            raise BackendError(
                f"the traced graph lacks the layers {', '.join(missing)}: the model does not use their outputs, or "
                "takes a different path for other inputs; remove them from the model, or use the backend cpu"
            )
        self._other_bytes = constant_bytes(graph) - prepared.weight_bytes() + prepared.other_bytes()
        self._full = self._candidate = self._current = self._timed(graph)
        #: See ``Deployed.model``.
        self.model = self._module(self._full.session, self._traced.arguments, self._traced.form)

    def _trace(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Traced:
        """Return the graph of the model."""
        return trace(task, prepared.model, prepared.layers, batch_sizes)

    @abstractmethod
    def _open(self, graph: Graph) -> S:
        """Return a session of ``graph``, which is that of the installed map."""

    @abstractmethod
    def _module(self, session: S, arguments: Sequence[int | str], form: str) -> SessionModule[S]:
        """Return ``session`` as a module; see ``Traced`` for the other arguments."""

    @abstractmethod
    def _layers_ms(self, run: Callable[[], object], layers: Sequence[str], passes: int) -> list[dict[str, float]]:
        """Return layer -> ms in its operators, for each of some passes through a new session of the installed map."""

    @abstractmethod
    def working_bytes(self, run: Callable[[], object]) -> int:
        """See ``Deployed.working_bytes``."""

    @property
    def session_seconds(self) -> float | None:
        return self._current.seconds

    def apply(self, names: Mapping[str, str]) -> None:
        before = self._prepared.installed
        self._prepared.apply(names)
        try:
            self._current = self._opened()
        except BaseException:
            self._prepared.apply(before)
            raise
        self.model.session = self._current.session

    def other_bytes(self) -> int:
        return self._other_bytes

    def weight_bytes(self) -> int:
        return self._prepared.weight_bytes() - self._prepared.other_bytes() + self._other_bytes

    def layer_latencies(
        self,
        layers: Sequence[Layer],
        choices: Mapping[str, Sequence[str]],
        run: Callable[[], object],
        report: Report = silent,
    ) -> tuple[dict[tuple[str, str], float], float]:
        """See ``Deployed.layer_latencies``.

        One session per uniform map is profiled, so that all layers with one choice are timed at once, fused with their
        neighbours as in deployment.
        """
        latencies_ms: dict[tuple[str, str], list[float]] = {}
        try:
            names = list(dict.fromkeys(name for of_layer in choices.values() for name in of_layer))
            for choice in counted(names, Stage.LATENCIES, report):
                taking = [layer for layer, legal in choices.items() if choice in legal]
                self._prepared.apply(dict.fromkeys(taking, choice))
                found = self._layers_ms(run, taking, _PASSES)[_COLD:]
                latencies_ms |= {(layer, choice): [of_pass[layer] for of_pass in found] for layer in taking}
        finally:
            self.apply({})
        return by_shape(latencies_ms, layers, choices), statistics.median(_time_ms(run) for _ in range(_PASSES))

    def _opened(self) -> _Opened[S]:
        """Return the session of the installed map, creating it if necessary."""
        installed = self._prepared.installed
        for opened in (self._full, self._candidate):
            if opened.names == installed:
                return opened
        self._candidate = self._timed(self._graph())
        return self._candidate

    def _timed(self, graph: Graph) -> _Opened[S]:
        start = time.perf_counter()
        session = self._open(graph)
        return _Opened(names=self._prepared.installed, session=session, seconds=time.perf_counter() - start)

    def _graph(self) -> Graph:
        """Return the graph of the installed map."""
        return self._traced.filled(self._fragments())[0]

    def _fragments(self) -> dict[str, Fragment]:
        """Return layer name -> fragment of the installed map, for layers with placeholders in the graph."""
        installed = self._prepared.installed
        modules = {
            layer.name: self._prepared.module(layer.name, installed[layer.name])
            for layer in self._prepared.layers
            if has_place(layer)
        }
        return {
            name: module.fragment if isinstance(module, OnnxLayer) else fragment(module, FULL_PRECISION, None)
            for name, module in modules.items()
        }


def _time_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3
