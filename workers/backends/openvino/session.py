"""Compile graphs with OpenVINO, and run them as if they were the model."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino
import torch

from workers.backends.onnx.session_module import Array, SessionModule
from workers.backends.openvino.operators import Operator
from workers.errors import BackendError

_GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
#: Settings with which a map computes what it says.
_AS_THE_MAP_SAYS = {
    # The default is bf16 on processors that have it, in every operator.
    "INFERENCE_PRECISION_HINT": "f32",
    # The default quantizes the inputs of every layer with 8-bit weights dynamically.
    _GROUP_SIZE: 0,
}
#: Settings of one client at a time.
_LATENCY = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
#: Settings with which other processes and PyTorch's threads are not disturbed: threads are not bound to cores, and
#: their number is ours, whether or not two share a core.
_SHARED = {"ENABLE_CPU_PINNING": False, "ENABLE_HYPER_THREADING": True}


@functools.cache
def _core() -> openvino.Core:
    return openvino.Core()


def read(graph: Path | bytes) -> openvino.Model:
    """Return the model in an ONNX or IR file, or in the content of an ONNX file.

    Raises:
        BackendError: if OpenVINO rejects it.
    """
    try:
        return _core().read_model(graph)
    except Exception as error:  # OpenVINO's exceptions share no narrower base
        raise _refused(graph, error) from error


def open_session(
    graph: Path | bytes, *, profiled: bool = False, shapes: Sequence[tuple[int, ...]] | None = None
) -> "Session":
    """Return a session on the CPU with as many threads as PyTorch.

    Args:
        graph: path of an ONNX or IR file, or the content of an ONNX file.
        profiled: whether to time every operator of every pass.
        shapes: fixed shapes of the inputs; None keeps them as they are.

    Raises:
        BackendError: if OpenVINO rejects the graph.
    """
    model = read(graph)
    settings = {**_AS_THE_MAP_SAYS, **_LATENCY, **_SHARED, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        if shapes is not None:
            model.reshape({number: openvino.PartialShape(list(shape)) for number, shape in enumerate(shapes)})
        return Session(_core().compile_model(model, "CPU", {**settings, "PERF_COUNT": profiled}), profiled=profiled)
    except Exception as error:  # OpenVINO's exceptions share no narrower base
        raise _refused(graph, error) from error


def save(graph: bytes, path: Path) -> list[str]:
    """Write the content of an ONNX file as IR: ``path``, and weights beside it; return the names of its operators.

    Equal graphs give equal files.

    Raises:
        BackendError: if OpenVINO rejects the graph.
    """
    model = read(graph)
    operators = model.get_ordered_ops()
    for number, operator in enumerate(operators):
        name = operator.get_friendly_name()
        # Operators that are no nodes of the graph have names with a count over all models of this process.
        if name.rpartition("_")[0] == operator.get_type_name():
            operator.set_friendly_name(f"{operator.get_type_name()}/{number}")
    # OpenVINO takes this setting from the file, but not that of the precision.
    model.set_rt_info("0", ["runtime_options", _GROUP_SIZE])
    openvino.save_model(model, path, compress_to_fp16=False)
    return [operator.get_friendly_name() for operator in operators]


def _refused(graph: Path | bytes, error: Exception) -> BackendError:
    what = repr(str(graph)) if isinstance(graph, Path) else "the graph of the map"
    version, reason = openvino.__version__.partition("-")[0], str(error).strip().splitlines()[-1]
    return BackendError(f"OpenVINO {version} cannot load {what}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a session."""

    #: Shapes of the inputs.
    shapes: tuple[tuple[int, ...], ...]
    #: Name of each operator -> milliseconds, constants included; empty unless the session is profiled.
    operators_ms: Mapping[str, float]


class Session:
    """A compiled model with one request."""

    def __init__(self, compiled: openvino.CompiledModel, *, profiled: bool) -> None:
        self._profiled = profiled
        self._calls: list[Call] | None = None
        #: What OpenVINO compiled.
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = [output.get_any_name() for output in compiled.outputs]

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Return the outputs by name, in arrays of their own."""
        results = self._request.infer(list(inputs), share_inputs=True)
        if self._calls is not None:
            timed = self._request.profiling_info if self._profiled else ()
            operators_ms = {each.node_name: _elapsed_ms(each) for each in timed}
            self._calls.append(Call(shapes=tuple(x.shape for x in inputs), operators_ms=operators_ms))
        return {name: results[number] for number, name in enumerate(self._outputs)}

    @contextmanager
    def watched(self) -> Iterator[list[Call]]:
        """Yield a list to which every call is added while the context is open."""
        self._calls = calls = list[Call]()
        try:
            yield calls
        finally:
            self._calls = None

    def operators(self) -> list[Operator]:
        """Return the operators that run, in execution order."""
        nodes = self.compiled.get_runtime_model().get_ordered_ops()
        numbers = {node.get_friendly_name(): number for number, node in enumerate(nodes)}
        return [_operator(node, numbers) for node in nodes]


def _elapsed_ms(timed: openvino.ProfilingInfo) -> float:
    # OpenVINO counts whole microseconds, and says of an operator that took less than one that it did not run.
    return max(float(timed.real_time.total_seconds()) * 1e3, 0.5e-3)


def _operator(node: Any, numbers: dict[str, int]) -> Operator:
    told = {key: str(value.value) for key, value in node.get_rt_info().items()}
    return Operator(
        name=node.get_friendly_name(),
        kind=told["layerType"],
        origins=tuple(told["originalLayersNames"].split(",")),
        input_types=tuple(each.get_element_type().get_type_name() for each in node.inputs()),
        reads=tuple(numbers[each.get_source_output().get_node().get_friendly_name()] for each in node.inputs()),
        nbytes=sum(_nbytes(output) for output in node.outputs()),
    )


def _nbytes(output: Any) -> int:
    """Return the bytes of an output; 0 if its shape varies or its type is unknown."""
    kind, shape = output.get_element_type(), output.get_partial_shape()
    if kind.is_dynamic() or shape.is_dynamic:
        return 0
    count = math.prod(int(size) for size in shape.to_shape())
    return -(-count * int(kind.bitwidth) // 8)


class OpenVinoModule(SessionModule[Session]):
    """A session of OpenVINO that is called like the model it was exported from."""

    def _compute(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return self.session.run(inputs)
