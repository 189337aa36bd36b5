"""The operators that ONNX Runtime executes, after its own fusions, and that they compute what the choice says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx import fragments
from workers.backends.onnx.attention import fused_attention
from workers.backends.onnx.backend import OnnxRuntimeBackend
from workers.backends.onnx.deployed import OnnxDeployed
from workers.backends.onnx.graph import serialized
from workers.backends.onnx.layer import OnnxLayer
from workers.device.processor import this_processor
from workers.model.prepared import PreparedModel
from workers.task import OutputKind, Split


class Task:
    """A model and its inputs."""

    output_kind = OutputKind.EMBEDDING

    def __init__(self, build: Callable[[], nn.Module], *inputs: torch.Tensor) -> None:
        self.build, self.inputs = build, inputs

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def calibration(self) -> Sequence[tuple[torch.Tensor, ...]]:
        return [self.inputs]

    def evaluation(self, split: Split) -> Sequence[tuple[torch.Tensor, ...]]:
        return [self.inputs]

    def forward(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        outputs: torch.Tensor = model(*batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return 1.0

    def latency_batch(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        return tuple(each[:batch_size] for each in self.inputs)


def ranges_of(task: Task) -> dict[str, ActivationRange]:
    """Return the exact ranges of the layers' inputs."""
    model, ranges = task.build_model(), {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            low, high = inputs[0].aminmax()
            ranges[name] = ActivationRange(low=min(0.0, float(low)), high=max(0.0, float(high)))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.register_forward_pre_hook(note(name))
    with torch.inference_mode():
        model(*task.inputs)
    return ranges


def deploy(
    task: Task, choices: Mapping[str, str], ranges: Mapping[str, ActivationRange] | None = None
) -> tuple[OnnxDeployed, PreparedModel]:
    model, backend = task.build_model(), OnnxRuntimeBackend()
    layers = discover(model, lambda m: task.forward(m, task.inputs))
    prepared = PreparedModel(model, layers, backend, ranges or ranges_of(task))
    deployed = backend.deploy(task, prepared, (1,))  # type: ignore[arg-type]
    assert isinstance(deployed, OnnxDeployed)
    deployed.apply(choices)
    return deployed, prepared


def executed(deployed: OnnxDeployed, folder: Path) -> list[tuple[str, str]]:
    """Return the layer and the operator of every node that ONNX Runtime executes; other nodes have no layer."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    graph = serialized(deployed._graph())
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = {layer.name for layer in deployed._prepared.layers}
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    owners = (node.name.partition("/")[0] for node in nodes)
    return [(owner if owner in names else "", node.op_type) for owner, node in zip(owners, nodes, strict=True)]


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


def check_emulation(task: Task, deployed: OnnxDeployed, prepared: PreparedModel) -> None:
    """Check that the session computes what the layers of its map compute in PyTorch."""
    with torch.inference_mode():
        actual, emulated = task.forward(deployed.model, task.inputs), task.forward(prepared.model, task.inputs)
    # Sums in another order round few activations to the neighbouring integer.
    assert relative_error(actual, emulated) < 2e-3


@pytest.mark.parametrize("shape", [(5, 32), (2, 5, 32)])
@pytest.mark.parametrize("choice", ["int8_static", "int8_dynamic"])
def test_int8_products_add_the_bias_and_never_run_in_fp32(choice: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    task = Task(lambda: nn.Sequential(nn.Linear(32, 16)), torch.randn(shape))
    deployed, prepared = deploy(task, {"0": choice})
    operators = [operator for _, operator in executed(deployed, tmp_path)]
    expected = ["QuantizeLinear", "MatMulIntegerToFloat"] if choice == "int8_static" else ["DynamicQuantizeMatMul"]
    assert operators == expected
    check_emulation(task, deployed, prepared)


@pytest.mark.parametrize("shape", [(5, 48), (2, 5, 48), (48,)])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_weights_are_multiplied_without_rounding_activations(shape: tuple[int, ...], *, bias: bool) -> None:
    module, x = nn.Linear(48, 16, bias=bias).eval(), torch.randn(shape)
    layer = OnnxRuntimeBackend().prepare(module, CHOICES["int8_weight_only"], None)
    assert isinstance(layer, OnnxLayer)
    with torch.inference_mode():
        torch.testing.assert_close(run_fragment(layer.fragment, x), layer(x), rtol=1e-5, atol=1e-6)


class Mobile(nn.Module):
    """An inverted residual block with TensorFlow's padding between a stem and a head."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor] = F.relu6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self._activation = activation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self._activation(self.expand(self._activation(self.stem(images))))
        hidden = self.project(self._activation(self.depthwise(F.pad(hidden, (0, 1, 0, 1)))))
        return hidden + self.head(hidden)


IMAGES = 4.0 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MOBILE = ("stem", "expand", "depthwise", "project", "head")


def test_outputs_that_are_quantized_at_once_never_leave_integers(tmp_path: Path) -> None:
    task = Task(Mobile, IMAGES)
    deployed, prepared = deploy(task, dict.fromkeys(MOBILE, "int8_static"))
    nodes = executed(deployed, tmp_path)
    of_layers = {layer: [operator for owner, operator in nodes if owner == layer] for layer in MOBILE}
    # The clamps and the padding are done by these, and their inputs are the outputs before.
    assert of_layers["expand"] == of_layers["depthwise"] == ["QLinearConv"]
    assert {"QuantizeLinear", "QLinearConv"} == set(of_layers["stem"]) - {"Transpose"}
    # Others read the outputs of these in fp32 too.
    assert "MatMulIntegerToFloat" in of_layers["project"]
    assert "MatMulIntegerToFloat" in of_layers["head"]
    assert not {operator for owner, operator in nodes if not owner} & {"Clip", "Relu", "Pad", "DequantizeLinear"}
    check_emulation(task, deployed, prepared)


def test_convolutions_keep_their_floats_where_the_reader_is_in_fp32(tmp_path: Path) -> None:
    task = Task(Mobile, IMAGES)
    deployed, prepared = deploy(task, {"stem": "int8_static", "project": "int8_static"})
    nodes = executed(deployed, tmp_path)
    assert "QLinearConv" not in [operator for _, operator in nodes]
    assert [owner for owner, operator in nodes if operator == "MatMulIntegerToFloat"] == ["stem", "project"]
    check_emulation(task, deployed, prepared)


@pytest.mark.parametrize(
    ("activation", "low", "high", "fused"),
    [
        (F.relu6, 0.0, 6.0, True),
        (F.relu6, 0.0, 2.5, True),
        (F.relu6, 0.0, 7.0, False),
        (F.relu, 0.0, 7.0, True),
        (F.relu, -1.0, 7.0, False),
        (F.silu, -1.0, 7.0, False),
    ],
)
def test_clamps_are_dropped_only_where_integers_cannot_exceed_them(
    activation: Callable[[torch.Tensor], torch.Tensor], low: float, high: float, *, fused: bool, tmp_path: Path
) -> None:
    task = Task(lambda: Mobile(activation), IMAGES)
    ranges = ranges_of(task) | {"expand": ActivationRange(low=low, high=high)}
    deployed, prepared = deploy(task, {"stem": "int8_static", "expand": "int8_static"}, ranges)
    assert (("stem", "QLinearConv") in executed(deployed, tmp_path)) is fused
    check_emulation(task, deployed, prepared)


def test_layers_that_are_called_twice_take_one_form(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(torch.tanh(self.other(self.layer(x))))
            return result

    task = Task(Twice, torch.randn(2, 4, 6))
    deployed, prepared = deploy(task, {"layer": "int8_static", "other": "int8_static"})
    # Its first output is quantized at once, its second is the model's.
    assert "QLinearConv" not in [operator for _, operator in executed(deployed, tmp_path)]
    check_emulation(task, deployed, prepared)


@pytest.mark.parametrize("groups", [1, 8])
def test_biases_beyond_the_integers_keep_their_values(groups: int, tmp_path: Path) -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.reader = nn.Conv2d(8, 8, 1, groups=groups), nn.Conv2d(8, 4, 1)
            # As in a network whose batch norms are folded: channels that answer with their bias alone.
            self.layer.weight.data[2:6] *= torch.tensor([1e-6, 1e-12, 1e-30, 0.0]).view(-1, 1, 1, 1)
            self.layer.bias.data = torch.arange(1.0, 9.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.reader(F.relu(self.layer(x)))
            return result

    task = Task(Dead, torch.randn(2, 8, 5, 5))
    for choices in ({"layer": "int8_static", "reader": "int8_static"}, {"layer": "int8_static"}):
        deployed, prepared = deploy(task, choices)
        assert ("QLinearConv" in dict(executed(deployed, tmp_path)).values()) is ("reader" in choices)
        check_emulation(task, deployed, prepared)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_padding_with_zeros_is_done_by_the_convolution(mode: str, tmp_path: Path) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(F.pad(x, (0, 1, 2, 3), mode=mode))
            return result

    task = Task(Padded, torch.randn(2, 4, 9, 9))
    for choice in ("fp32", "int8_static"):
        deployed, prepared = deploy(task, {"layer": choice})
        operators = [operator for _, operator in executed(deployed, tmp_path)]
        assert ("Pad" in operators) is (mode == "reflect")
        check_emulation(task, deployed, prepared)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pointwise": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 7)),
    "pointwise-of-stride-two": (lambda: nn.Conv2d(4, 6, 1, stride=2), (2, 4, 5, 7)),
    "pointwise-with-padding": (lambda: nn.Conv2d(4, 6, 1, padding=1), (2, 4, 5, 7)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=(2, 1)), (2, 4, 9, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=1, bias=False), (2, 4, 10, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (5, 3), padding="same"), (1, 4, 6, 6)),
    "of-sequences": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
    "in-groups": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 11)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("choice", ["int8_static", "int8_dynamic"])
def test_integer_convolutions_have_the_layers_geometry(name: str, choice: str) -> None:
    build, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    module, x = build().eval(), torch.randn(shape)
    # Without VNNI, ONNX Runtime's sums of 8-bit products saturate.
    wanted = CHOICES[choice].with_weight_bits(this_processor().int8_weight_bits)
    layer = OnnxRuntimeBackend().prepare(module, wanted, ActivationRange(low=-4.0, high=4.0))
    assert isinstance(layer, OnnxLayer)
    with torch.inference_mode():
        expected = layer(x)
        torch.testing.assert_close(run_fragment(layer.fragment, x), expected, rtol=1e-4, atol=1e-4)
        if layer.fragment.requantized is not None:
            assert layer.fragment.requantized.nbytes == layer.fragment.nbytes
            torch.testing.assert_close(run_fragment(layer.fragment.requantized, x), expected, rtol=1e-4, atol=1e-4)


def run_fragment(fragment: fragments.Fragment, x: torch.Tensor) -> torch.Tensor:
    """Return what ONNX Runtime computes of one layer, without optimizations."""
    nodes = fragment.place(layer="layer", call="call", reads="x", writes="y")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "layer", values[:1], values[1:], list(fragment.placed_constants("layer")))
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self._options = options

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(query, key, value, mask, **self._options)


TOKENS = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(2))
PRESENT = (torch.arange(7) < torch.tensor([7, 4, 5])[:, None])[:, None, None, :]


@pytest.mark.parametrize("choice", ["fp32", "int8_static"])
@pytest.mark.parametrize(
    ("options", "masks"),
    [
        ({}, ()),
        ({"is_causal": True}, ()),
        ({"scale": 0.7}, ()),
        ({}, (PRESENT,)),
        ({}, (torch.randn(3, 1, 7, 7, generator=torch.Generator().manual_seed(3)),)),
        ({}, (torch.randn(3, 4, 7, 7, generator=torch.Generator().manual_seed(3)),)),
    ],
    ids=["plain", "causal", "scaled", "padded", "biased", "biased-by-head"],
)
def test_attention_is_one_operator(
    options: dict[str, Any], masks: tuple[torch.Tensor, ...], choice: str, tmp_path: Path
) -> None:
    task = Task(lambda: Attention(**options), TOKENS, *masks)
    deployed, prepared = deploy(task, dict.fromkeys(("query", "key", "value"), choice))
    operators = [operator for _, operator in executed(deployed, tmp_path)]
    assert operators.count("MultiHeadAttention") == 1
    assert not {"Softmax", "IsNaN"} & set(operators)
    check_emulation(task, deployed, prepared)


def test_attention_that_the_operator_lacks_is_traced_as_before(tmp_path: Path) -> None:
    class Grouped(Attention):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            query, key, value = (
                layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            return F.scaled_dot_product_attention(query, key[:, :2], value[:, :2], enable_gqa=True)

    task = Task(Grouped, TOKENS)
    deployed, prepared = deploy(task, {})
    operators = [operator for _, operator in executed(deployed, tmp_path)]
    assert "Softmax" in operators
    assert "MultiHeadAttention" not in operators
    check_emulation(task, deployed, prepared)


def test_sums_and_norms_stay_apart(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.norm(x + self.layer(x))
            return result

    task = Task(Residual, TOKENS)
    deployed, prepared = deploy(task, {"layer": "int8_static"})
    operators = [operator for _, operator in executed(deployed, tmp_path)]
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat", "Sum", "LayerNormalization"]
    check_emulation(task, deployed, prepared)


def test_attention_of_pytorch_is_restored() -> None:
    before = F.scaled_dot_product_attention
    with fused_attention():
        assert F.scaled_dot_product_attention is not before
    assert F.scaled_dot_product_attention is before
