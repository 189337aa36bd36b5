"""The ONNX Runtime backend: what it refuses, what its sessions hold, what is made once, what a profile says."""

import importlib.util
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from autotune.exporters.base import Source
from autotune.exporters.onnx_exporter import MODEL, OnnxExporter
from autotune.maps.apply import NativeMap
from autotune.maps.map_file import MapFile, MappedLayer
from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.backends import build_backend
from workers.backends.onnx import deployed as deployed_module
from workers.backends.onnx import fragments, profiling
from workers.backends.onnx.backend import OnnxRuntimeBackend
from workers.backends.onnx.deployed import OnnxDeployed
from workers.device.processor import MASK, this_processor
from workers.errors import BackendError
from workers.model.fingerprint import fingerprint
from workers.model.prepared import PreparedModel
from workers.setup import MeasurementSettings
from workers.task import OutputKind, Split

X = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
MIXED = {"0": "int8_static", "2": "int4_weight_only", "4": "int8_dynamic"}


class Task:
    """A small model of three layers."""

    output_kind = OutputKind.EMBEDDING

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16), nn.LayerNorm(16)
        ).eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return [X]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [X]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return 1.0

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return X[:batch_size]


RANGES = {name: ActivationRange(low=-4.0, high=4.0) for name in MIXED}


def prepared_model(task: Task, backend: OnnxRuntimeBackend) -> PreparedModel:
    model = task.build_model()
    return PreparedModel(model, discover(model, lambda m: task.forward(m, X)), backend, RANGES)


@pytest.fixture(scope="module")
def deployed() -> OnnxDeployed:
    task, backend = Task(), OnnxRuntimeBackend()
    built = backend.deploy(task, prepared_model(task, backend), (1,))
    assert isinstance(built, OnnxDeployed)
    return built


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every graph a session is opened of."""
    opened: list[bytes] = []

    def note(graph: bytes, **options: Any) -> Any:
        opened.append(graph)
        return open_session(graph, **options)

    open_session = deployed_module.open_session
    monkeypatch.setattr(deployed_module, "open_session", note)
    return opened


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(X)
        return result


def test_weight_bytes_are_those_of_the_constants(deployed: OnnxDeployed, graphs: list[bytes]) -> None:
    for names in (MIXED, dict.fromkeys(MIXED, "int8_weight_only"), {"2": "int8_dynamic"}):
        deployed.apply(names)
        constants = onnx.load_from_string(graphs[-1]).graph.initializer
        assert deployed.weight_bytes() == sum(onnx.numpy_helper.to_array(value).nbytes for value in constants)


def test_threads_of_a_session_rest_between_its_passes(deployed: OnnxDeployed) -> None:
    options = deployed.model.session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_sessions_are_made_for_new_maps_only(deployed: OnnxDeployed, graphs: list[bytes]) -> None:
    deployed.apply({"0": "int8_dynamic"})
    del graphs[:]
    for _ in range(3):
        deployed.apply({})
        full = deployed.session_seconds
        deployed.apply({"0": "int8_static"})
        assert deployed.session_seconds != full
    assert len(graphs) == 1


def test_layers_are_made_once(deployed: OnnxDeployed, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [MIXED, MIXED | {"0": "int8_dynamic"}]
    for names in maps:
        deployed.apply(names)

    def fail(*arguments: Any) -> None:
        raise AssertionError("a layer is made again")

    monkeypatch.setattr(OnnxRuntimeBackend, "prepare", fail)
    for names in maps:
        deployed.apply(names)


def test_error_of_the_runtime_leaves_the_model_as_it_was(
    deployed: OnnxDeployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.apply(MIXED)
    before, weight_bytes = outputs(deployed.model), deployed.weight_bytes()

    def refuse(graph: bytes) -> None:
        raise BackendError("too strange")

    monkeypatch.setattr(deployed_module, "open_session", refuse)
    with pytest.raises(BackendError, match="too strange"):
        deployed.apply({"0": "int4_weight_only"})
    assert torch.equal(outputs(deployed.model), before)
    assert deployed.weight_bytes() == weight_bytes


def test_export_holds_what_was_measured(deployed: OnnxDeployed, graphs: list[bytes], tmp_path: Path) -> None:
    deployed.apply(MIXED | {"2": "int8_weight_only"})
    file = map_file(MIXED | {"2": "int8_weight_only"})
    task, model = Task(), Task().build_model()
    layers = discover(model, lambda m: task.forward(m, X))
    source = Source(file=file, task=task, model=model, layers=layers)
    details = OnnxExporter().write(source, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == graphs[-1]
    assert torch.equal(outputs(OnnxExporter().load(tmp_path, details, Task().build_model)), outputs(deployed.model))


def map_file(choices: dict[str, str]) -> MapFile:
    model = Task().build_model()
    return MapFile.model_construct(
        task="small",
        backend="onnxruntime",
        model_fingerprint=fingerprint(model),
        layers={
            layer.name: MappedLayer(
                kind=layer.kind,
                weight_shape=layer.weight_shape,
                choice=choices[layer.name],
                weight_bits=CHOICES[choices[layer.name]]
                .with_weight_bits(this_processor().int8_weight_bits)
                .weight_bits,
                input_range=(-4.0, 4.0),
            )
            for layer in discover(model, lambda m: m(X))
        },
        measurement=MeasurementSettings(),
    )


def test_calls_of_one_pass_are_added_up(deployed: OnnxDeployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "layer_ms", lambda events, names: {name: len(events) for name in names})
    choices = {name: ["fp32"] for name in MIXED}

    def nodes(calls: int) -> float:
        def run() -> None:
            for _ in range(calls):
                outputs(deployed.model)

        return deployed.layer_latencies(deployed._prepared.layers, choices, run)[0]["0", "fp32"]

    assert nodes(3) == 3 * nodes(1) > 0


def test_map_is_not_applied_to_a_pytorch_model() -> None:
    model = Task().build_model()
    before = dict(model.named_modules())
    expected = r"which runs whole graphs, not layers .*; export it with: autotune export --format onnxruntime"
    with pytest.raises(BackendError, match=expected):
        NativeMap(map_file(MIXED)).apply(model)
    assert dict(model.named_modules()) == before


class Wasteful(Task):
    def build_model(self) -> nn.Module:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(32, 8), nn.Linear(32, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.unused(x)
                outputs: torch.Tensor = self.used(x)
                return outputs

        return Model().eval()


def test_layer_without_a_place_in_the_graph_is_named() -> None:
    backend = OnnxRuntimeBackend()
    with pytest.raises(BackendError, match=r"lacks the layers unused: .* use the backend cpu"):
        backend.deploy(Wasteful(), prepared_model(Wasteful(), backend), (1,))


class Halved(nn.Module):
    """Joins its input twice and takes that apart again, which fixes the size of the graph's first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.layer(torch.cat([x, x])).chunk(2)
        return one + 2.0 * other


def test_a_graph_that_cannot_be_optimized_is_refused_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "build_model", lambda self: Halved().eval())
    task, backend = Task(), OnnxRuntimeBackend()
    with pytest.raises(BackendError, match=r"onnxscript cannot optimize the graph; .* backend: AttributeError: "):
        backend.deploy(task, prepared_model(task, backend), (1,))


@pytest.mark.parametrize("choice", ["bf16", "fp16"])
def test_what_would_be_widened_is_refused(choice: str) -> None:
    (layer,) = discover(nn.Sequential(nn.Linear(8, 8)), lambda m: m(torch.zeros(1, 8)))
    assert f"widens {choice} weights to fp32" in str(OnnxRuntimeBackend().refuses(layer, CHOICES[choice]))


@pytest.mark.parametrize(
    ("machine", "features", "bits"),
    [("x86_64", {"avx2": True}, 7), ("x86_64", {"avx_vnni": True}, 8), ("aarch64", {"neon": True}, 8)],
)
def test_int8_products_have_the_bits_that_the_processor_gets_right(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: dict[str, bool], bits: int
) -> None:
    (layer,) = discover(nn.Sequential(nn.Linear(8, 8)), lambda m: m(torch.zeros(1, 8)))
    monkeypatch.delenv(MASK, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    backend, choice = OnnxRuntimeBackend(), CHOICES["int8_dynamic"]
    assert backend.int8_weight_bits(layer) == bits
    assert backend.refuses(layer, choice.with_weight_bits(bits)) is None
    reason = backend.refuses(layer, choice)
    assert (reason is None) if bits == 8 else (reason is not None and "needs VNNI" in reason)
    assert backend.refuses(layer, CHOICES["int8_weight_only"]) is None


@pytest.mark.parametrize("choice", ["int8_static", "int8_dynamic", "int8_dynamic_per_token"])
@pytest.mark.parametrize("features", [64, 384, 2048])
def test_seven_bits_do_not_saturate(choice: str, features: int) -> None:
    # All weights and inputs at their ends: without VNNI, products of eight bits would not fit 16-bit sums.
    module = nn.Linear(features, 32, bias=False).eval()
    module.weight.data = torch.full_like(module.weight, 63.0)
    x = torch.full((40, features), 255.0)
    fragment = fragments.fragment(module, CHOICES[choice].with_weight_bits(7), ActivationRange(low=0.0, high=255.0))
    integers = next(numpy_helper.to_array(c) for name, c in fragment.constants.items() if name == "weight_int8")
    assert (integers.min(), integers.max()) == (63, 63)
    outputs = run_fragment(fragment, x)
    torch.testing.assert_close(outputs, torch.full((40, 32), 255.0 * 63.0 * features), rtol=1e-5, atol=0.0)


def run_fragment(fragment: fragments.Fragment, x: torch.Tensor) -> torch.Tensor:
    """Return what ONNX Runtime computes of one layer."""
    nodes = fragment.place(layer="layer", call="call", reads="x", writes="y")
    constants = []
    for name, constant in fragment.constants.items():
        constants.append(onnx.TensorProto())
        constants[-1].CopyFrom(constant)
        constants[-1].name = f"layer.{name}"
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "layer", values[:1], values[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(fragments.MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(BackendError, match=r"onnxruntime needs the package 'onnxruntime', .* pip install 'quant-aut"):
        build_backend("onnxruntime")


def node(name: str, dur: int, in_use: int, peak: int) -> dict[str, Any]:
    memory = {"mem_bytes_in_use": str(in_use), "mem_in_use_peak": str(peak)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": memory}


RUN = {"cat": "Session", "name": "model_run", "dur": 9}


def test_profile_is_read_call_by_call(tmp_path: Path) -> None:
    path = tmp_path / "profiling.json"
    first, second = node("a/MatMul_0", 1000, 10, 10), node("a/MatMul_0", 2000, 10, 10)
    path.write_text(json.dumps([{"cat": "Session", "name": "load", "dur": 1}, first, RUN, second, RUN]))
    assert profiling.read_calls(path) == [[first], [second]]


def test_time_goes_to_the_layer_a_node_is_named_after() -> None:
    events = [
        node("block.0/MatMul_0", 1000, 0, 0),
        node("block.0#2/MatMulInteger_1_fused/", 500, 0, 0),
        node("block.0", 7, 0, 0),
        node("block.00/MatMul_0", 7, 0, 0),
        node("BiasGelu_token_3", 7, 0, 0),
    ]
    assert profiling.layer_ms(events, ["block.0", "block.1"]) == {"block.0": 1.5, "block.1": 0.0}


def test_peak_of_loading_is_not_taken_for_that_of_a_pass() -> None:
    assert profiling.working_bytes([node("a", 1, 100, 150), node("b", 1, 160, 190), node("c", 1, 120, 190)]) == 90
    assert profiling.working_bytes([node("a", 1, 100, 500), node("b", 1, 160, 500), node("c", 1, 120, 500)]) == 60
