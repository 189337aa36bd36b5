"""The OpenVINO backend: what it refuses, in which precision its operators run, what they hold, how they are timed."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends import build_backend
from workers.backends.onnx.builder import Fragment
from workers.backends.openvino import session as session_module
from workers.backends.openvino.backend import OpenVinoBackend
from workers.backends.openvino.deployed import OpenVinoDeployed
from workers.backends.openvino.fragments import fragment
from workers.backends.openvino.layer import OpenVinoLayer
from workers.backends.openvino.operators import Operator, computed_otherwise, layer_of, named_after, peak_bytes
from workers.backends.openvino.session import Session, open_session, save
from workers.device.processor import MASK, this_processor
from workers.errors import BackendError
from workers.model.prepared import PreparedModel
from workers.task import OutputKind, Split

X = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
RANGE = ActivationRange(low=-4.0, high=4.0)
#: Choice -> OpenVINO's types of the input and the weight of an operator that computes a linear layer so.
TYPES = {
    "fp32": ("f32", "f32"),
    "bf16": ("bf16", "bf16"),
    "int8_static": ("u8", "i8"),
    "int8_weight_only": ("f32", "i8"),
    "int4_weight_only": ("f32", "u4"),
}
needs_bf16 = pytest.mark.skipif(not this_processor().has_bf16, reason="the processor has no bf16 products")
each_choice = pytest.mark.parametrize(
    "choice", [pytest.param(name, marks=[needs_bf16] if name == "bf16" else []) for name in TYPES]
)


class Task:
    """A small model of three layers, the last of which makes the output."""

    output_kind = OutputKind.EMBEDDING

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()

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


LAYERS = ("0", "2", "4")


@pytest.fixture(scope="module")
def deployed() -> OpenVinoDeployed:
    task, backend = Task(), OpenVinoBackend()
    model = task.build_model()
    layers = discover(model, lambda m: task.forward(m, X))
    prepared = PreparedModel(
        model,
        layers,
        backend,
        dict.fromkeys(LAYERS, RANGE),
        weight_bits=dict.fromkeys(LAYERS, this_processor().int8_weight_bits),
    )
    built = backend.deploy(task, prepared, (1,))
    assert isinstance(built, OpenVinoDeployed)
    return built


def products(session: Session) -> list[Operator]:
    return [operator for operator in session.operators() if operator.kind == "FullyConnected"]


@each_choice
def test_every_layer_runs_in_the_precision_of_its_choice(deployed: OpenVinoDeployed, choice: str) -> None:
    deployed.apply(dict.fromkeys(LAYERS, choice))
    assert [operator.input_types[:2] for operator in products(deployed.model.session)] == [TYPES[choice]] * 3


@needs_bf16
@pytest.mark.parametrize("names", [("fp32", "bf16", "int4_weight_only"), ("bf16", "int8_static", "fp32")])
def test_layers_of_one_map_run_in_precisions_of_their_own(
    deployed: OpenVinoDeployed, names: tuple[str, str, str]
) -> None:
    deployed.apply(dict(zip(LAYERS, names, strict=True)))
    assert [operator.input_types[:2] for operator in products(deployed.model.session)] == [
        TYPES[name] for name in names
    ]


@needs_bf16
def test_a_map_that_openvino_computes_otherwise_is_refused(
    deployed: OpenVinoDeployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.apply({})
    before = deployed.model(X)
    monkeypatch.setitem(session_module._AS_THE_MAP_SAYS, "INFERENCE_PRECISION_HINT", "bf16")
    with pytest.raises(BackendError, match=r"in another precision than the map says: 2 \(fp32\), 4 \(fp32\); leave"):
        deployed.apply({"0": "bf16"})
    assert torch.equal(deployed.model(X), before)


def test_weights_alone_are_quantized_in_weight_only_layers() -> None:
    # OpenVINO's default quantizes the inputs of such layers, too, by up to half of a step: about 0.006 here.
    module = nn.Linear(512, 64).eval()
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    emulated = OpenVinoLayer(module, CHOICES["int8_weight_only"], None)
    with torch.inference_mode():
        torch.testing.assert_close(run_fragment(emulated.fragment, x), emulated(x), rtol=1e-4, atol=1e-4)


@needs_bf16
@pytest.mark.parametrize("bias", [False, True])
def test_products_in_bf16_are_rounded_as_openvino_does(bias: bool) -> None:
    torch.manual_seed(0)
    emulated, x = OpenVinoLayer(nn.Linear(64, 48, bias=bias), CHOICES["bf16"], None), torch.randn(500, 64)
    with torch.inference_mode():
        found, expected = run_fragment(emulated.fragment, x), emulated(x)
    assert float((found == expected).float().mean()) > 0.999


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("features", [64, 384, 2048])
def test_seven_bits_do_not_saturate(kind: str, features: int) -> None:
    # All weights and inputs at their ends: without VNNI, products of eight bits would not fit 16-bit sums.
    module = nn.Linear(features, 32, bias=False) if kind == "linear" else nn.Conv1d(features, 32, 1, bias=False)
    module.weight.data = torch.full_like(module.weight, 63.0)
    x = torch.full((40, features) if kind == "linear" else (1, features, 40), 255.0)
    made = fragment(module.eval(), CHOICES["int8_static"].with_weight_bits(7), ActivationRange(low=0.0, high=255.0))
    outputs = run_fragment(made, x)
    torch.testing.assert_close(outputs, torch.full_like(outputs, 255.0 * 63.0 * features), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("choice", ["int8_weight_only", "int4_weight_only"])
def test_rows_without_variation_are_exact(choice: str) -> None:
    module = nn.Embedding(4, 8)
    module.weight.data = torch.tensor([0.0, 0.5, 0.5, -3.0])[:, None].repeat(1, 8)
    module.weight.data[2] += torch.linspace(0.0, 1e-7, 8)  # a step that fp16 rounds to 0
    prepared = OpenVinoBackend().prepare(module, CHOICES[choice], None)
    assert isinstance(prepared, OpenVinoLayer)
    rows = run_fragment(prepared.fragment, torch.arange(4))
    torch.testing.assert_close(rows, module.weight.detach(), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("choice", ["fp32", "bf16", "int8_static", "int8_weight_only", "int4_weight_only"])
@pytest.mark.parametrize(("outputs", "features"), [(48, 64), (5, 33), (1, 32), (3, 1), (2, 96)])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 3, 4)])
def test_what_is_not_refused_is_computed_so_at_every_shape(
    choice: str, outputs: int, features: int, leading: tuple[int, ...]
) -> None:
    module, x = nn.Linear(features, outputs).eval(), torch.randn(*leading, features)
    (layer,) = discover(nn.Sequential(module), lambda m: m(x))
    backend, chosen = OpenVinoBackend(), CHOICES[choice].with_weight_bits(this_processor().int8_weight_bits)
    if backend.refuses(layer, chosen) is not None:
        pytest.skip("the backend refuses it")
    session = open_session(graph_of(fragment(module, chosen, RANGE if chosen.needs_calibration else None), x))
    assert list(computed_otherwise(session.operators(), {"layer": chosen}, {"y": "layer/last"})) == []
    assert any(layer_of(each, ["layer"], {"y": "layer/last"}) for each in session.operators())


def graph_of(fragment: Fragment, x: torch.Tensor) -> bytes:
    nodes = fragment.place(layer="layer", call="layer", reads="x", writes="y")
    kind = TensorProto.FLOAT if x.is_floating_point() else TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, [None] * x.dim())],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(fragment.placed_constants("layer")),
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    return content


def run_fragment(fragment: Fragment, x: torch.Tensor) -> torch.Tensor:
    """Return what OpenVINO computes of one layer."""
    return torch.from_numpy(open_session(graph_of(fragment, x)).run([x.numpy()])["y"])


def test_equal_graphs_give_equal_files_that_keep_inputs_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = graph_of(fragment(nn.Linear(32, 8), CHOICES["int8_static"], RANGE), X)
    names = [save(graph, tmp_path / f"{number}.xml") for number in range(2)]
    assert names[0] == names[1]
    for ending in ("xml", "bin"):
        assert (tmp_path / f"0.{ending}").read_bytes() == (tmp_path / f"1.{ending}").read_bytes()
    content = (tmp_path / "0.xml").read_text()
    assert str(tmp_path) not in content
    assert '<DYNAMIC_QUANTIZATION_GROUP_SIZE value="0"' in content
    assert (open_session(tmp_path / "0.xml").run([X.numpy()])["y"] == open_session(graph).run([X.numpy()])["y"]).all()


def test_what_openvino_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^OpenVINO 20.* cannot load the graph of the map: "):
        open_session(b"no graph")
    path = tmp_path / "model.xml"
    path.write_text("no model")
    with pytest.raises(BackendError, match=r"cannot load '.*model\.xml': "):
        open_session(path)


def test_threads_are_not_bound_to_cores(deployed: OpenVinoDeployed) -> None:
    assert not deployed.model.session.compiled.get_property("ENABLE_CPU_PINNING")


def test_outputs_of_one_pass_outlive_the_next(deployed: OpenVinoDeployed) -> None:
    first = deployed.model(X)
    kept = first.clone()
    deployed.model(X + 1.0)
    assert torch.equal(first, kept)


def test_calls_of_one_pass_are_added_up(deployed: OpenVinoDeployed, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Session.run

    def run(self: Session, inputs: Sequence[Any]) -> dict[str, Any]:
        results = watched(self, inputs)
        if self._calls is not None:
            self._calls[-1] = replace(self._calls[-1], operators_ms=dict.fromkeys(self._calls[-1].operators_ms, 1.0))
        return results

    monkeypatch.setattr(Session, "run", run)

    def operators(calls: int) -> float:
        def run() -> None:
            for _ in range(calls):
                deployed.model(X)

        return deployed.layer_latencies(deployed._prepared.layers, {"0": ["fp32"]}, run)[0]["0", "fp32"]

    assert operators(3) == 3 * operators(1) > 0


def operator(kind: str, nbytes: int = 0, reads: Sequence[int] = (), **others: Any) -> Operator:
    given = {"name": kind, "origins": (), "input_types": ()} | others
    return Operator(kind=kind, reads=tuple(reads), nbytes=nbytes, **given)


@pytest.mark.parametrize(
    ("operators", "peak"),
    [
        pytest.param([operator("Input", 9), operator("Relu", 4, [0]), operator("Output", 4, [1])], 4, id="one"),
        pytest.param(
            [operator("Input"), operator("A", 4, [0]), operator("B", 8, [1]), operator("C", 2, [2])], 12, id="chain"
        ),
        pytest.param(
            [operator("Input"), operator("A", 4, [0]), operator("B", 8, [1]), operator("C", 2, [2, 1])], 14, id="kept"
        ),
        pytest.param(
            [operator("Input"), operator("A", 4, [0]), operator("Reshape", 4, [1]), operator("B", 1, [2])], 5, id="view"
        ),
        pytest.param(
            [operator("Const", 50), operator("Transpose", 50, [0]), operator("Input"), operator("A", 3, [1, 2])],
            3,
            id="constants",
        ),
    ],
)
def test_an_output_is_live_until_its_last_reader_has_run(operators: list[Operator], peak: int) -> None:
    assert peak_bytes(operators) == peak


def test_an_operator_belongs_to_the_first_layer_it_was_fused_from() -> None:
    fused = operator("FullyConnected", origins=("node_3", "b.0/MatMul_0", "b.0/Add_1", "b.1/QuantizeLinear_0"))
    assert layer_of(fused, ["b.1", "b.0"], {}) == "b.0"
    assert layer_of(fused, ["b.2"], {}) is None
    assert layer_of(operator("FullyConnected", origins=("logits",)), ["head"], {"logits": "head/Add_1"}) == "head"


def test_operators_are_listed_by_the_layer_they_are_named_after() -> None:
    names = ["head/MatMul_0", "head#2/MatMul_0", "logits", "other/0", "Constant/7"]
    expected = {"head": ["head/MatMul_0", "head#2/MatMul_0", "logits"], "tail": []}
    assert named_after(names, ["head", "tail"], {"logits": "head/Add_1"}) == expected


@pytest.mark.parametrize(
    ("kind", "types", "choice", "holds"),
    [
        ("FullyConnected", ("u8", "i8"), "int8_static", True),
        ("MatMul", ("i8", "i8"), "int8_static", True),
        ("FullyConnected", ("f32", "i8"), "int8_static", False),
        ("FullyConnected", ("f32", "f32"), "int8_static", False),
        ("FullyConnected", ("u8", "i8"), "int8_weight_only", False),
        ("FullyConnected", ("f32", "u4"), "int8_weight_only", False),
        ("Convolution", ("bf16", "bf16"), "bf16", True),
        ("Convolution", ("f32", "f32"), "bf16", False),
        ("Convolution", ("bf16", "bf16"), "fp32", False),
        ("Gather", ("u4", "i32"), "int4_weight_only", True),
        ("Gather", ("f32", "i32"), "bf16", False),
        ("Gather", ("u8", "i32"), "fp32", True),
        ("Gather", ("f32", "i32"), "int8_weight_only", False),
    ],
)
def test_another_precision_is_noticed(kind: str, types: tuple[str, str], choice: str, holds: bool) -> None:
    operators = [
        operator("Reorder", origins=("a/Cast_0",), input_types=("f32",)),
        operator(kind, origins=("a/MatMul_0",), input_types=types),
        operator("FullyConnected", origins=("elsewhere",), input_types=("f64", "f64")),
    ]
    assert list(computed_otherwise(operators, {"a": CHOICES[choice]}, {})) == ([] if holds else ["a"])


LINEAR = discover(nn.Sequential(nn.Linear(32, 32)), lambda m: m(torch.zeros(1, 32)))[0]
CONV = discover(nn.Sequential(nn.Conv1d(4, 4, 3)), lambda m: m(torch.zeros(1, 4, 9)))[0]


@pytest.mark.parametrize(
    ("layer", "choice", "reason"),
    [
        (LINEAR, "fp16", "widens fp16 layers to fp32"),
        (LINEAR, "int8_dynamic", "quantizes dynamically by one setting for the whole model"),
        (LINEAR, "int8_dynamic_per_token", "quantizes dynamically by one setting for the whole model"),
        (LINEAR, "fp8_dynamic", "no fp8 products"),
        (CONV, "int8_weight_only", "widens int8 weights of convolutions to fp32"),
        (replace(LINEAR, input_shape=(32,)), "int8_weight_only", "where the input is a single vector"),
        (replace(LINEAR, weight_shape=(1, 32)), "int4_weight_only", "where a layer has one input or output"),
        (replace(LINEAR, weight_shape=(8, 40)), "int4_weight_only", "divisible by 32, but got 40"),
        (replace(LINEAR, kind=LayerKind.EMBEDDING, weight_shape=(9, 7)), "int4_weight_only", "this embedding has 7"),
    ],
)
def test_refusals_say_why(layer: Layer, choice: str, reason: str) -> None:
    assert reason in str(OpenVinoBackend().refuses(layer, CHOICES[choice]))


@pytest.mark.parametrize(
    ("features", "bits", "bf16"),
    [
        ({"avx2": True}, 7, False),
        ({"avx_vnni": True}, 8, False),
        ({"avx512_vnni": True, "avx512_bf16": True}, 8, True),
        ({"amx_int8": True, "amx_bf16": True}, 8, True),
    ],
)
def test_choices_follow_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: Mapping[str, bool], bits: int, bf16: bool
) -> None:
    monkeypatch.delenv(MASK, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    backend = OpenVinoBackend()
    assert backend.int8_weight_bits(LINEAR) == bits
    static = CHOICES["int8_static"]
    assert backend.refuses(LINEAR, static.with_weight_bits(bits)) is None
    assert (backend.refuses(LINEAR, static) is None) == (bits == 8)
    assert (backend.refuses(LINEAR, CHOICES["bf16"]) is None) == bf16


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    expected = r"openvino needs the package 'openvino', .* pip install 'quant-autotune\[openvino\]'"
    with pytest.raises(BackendError, match=expected):
        build_backend("openvino")
