"""The ONNX file: which nodes stand for which layer, how it is called, and what it refuses."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from autotune.errors import ExportError
from autotune.exporters.base import Source
from autotune.exporters.onnx_exporter import LAYERS, MODEL, OnnxExporter
from autotune.maps.map_file import MapFile, MappedLayer
from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.signature import Outputs, named_outputs, signature
from workers.backends.rounding.weights import int8_per_channel
from workers.errors import BackendError
from workers.setup import MeasurementSettings
from workers.task import OutputKind, Split

#: Operators that make a choice what it is.
OPERATORS = {
    "fp32": {"MatMul"},
    "bf16": {"Cast", "MatMul"},
    "fp16": {"Cast", "MatMul"},
    "int8_static": {"QuantizeLinear", "MatMulIntegerToFloat"},
    "int8_dynamic": {"DynamicQuantizeLinear", "MatMulInteger"},
    "int8_weight_only": {"DequantizeLinear", "Gemm"},
    "int4_weight_only": {"MatMulNBits"},
}


class Model(nn.Module):
    """One linear layer for each choice, one of them used twice, and a switch that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(32, 32) for name in OPERATORS})

    def forward(self, x: torch.Tensor, *, double: bool) -> tuple[torch.Tensor, ...]:
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return (self.layers["int8_dynamic"](x) * (2.0 if double else 1.0), x)


class Task:
    output_kind = OutputKind.EMBEDDING

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def calibration(self) -> Sequence[torch.Tensor]:
        return [torch.ones(3, 4, 32)]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [torch.full((2, 5, 32), 0.5)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(batch, double=True)[0]
        return result

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, 4, 32)


def source_of(model: nn.Module) -> Source:
    task = Task(model)
    layers = discover(model, lambda m: task.forward(m, task.evaluation(Split.EVALUATION)[0]))
    mapped = {
        layer.name: MappedLayer(
            kind=layer.kind,
            weight_shape=layer.weight_shape,
            choice=layer.name.rpartition(".")[2],
            input_range=(-1.0, 1.0),
        )
        for layer in layers
    }
    file = MapFile.model_construct(layers=mapped, measurement=MeasurementSettings())
    return Source(file=file, task=task, model=model, layers=layers)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("onnx")
    return folder, dict(OnnxExporter().write(source_of(Model()), folder))


def test_every_layer_has_its_own_nodes(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = exported
    nodes = {node.name: node for node in onnx.load(folder / MODEL).graph.node}
    layers = json.loads((folder / LAYERS).read_text())
    assert list(layers) == [f"layers.{choice}" for choice in OPERATORS]
    for choice, operators in OPERATORS.items():
        entry = layers[f"layers.{choice}"]
        assert entry["choice"] == choice
        assert {nodes[name].op_type for name in entry["nodes"]} >= operators
    mapped = [name for entry in layers.values() for name in entry["nodes"]]
    assert len(mapped) == len(set(mapped))
    products = [name for name in layers["layers.int8_dynamic"]["nodes"] if nodes[name].op_type == "MatMulInteger"]
    assert len(products) == 2, "a layer that is used twice has nodes for both uses"


def test_ranges_and_integers_are_ours(exported: tuple[Path, dict[str, Any]]) -> None:
    constants = {
        value.name: onnx.numpy_helper.to_array(value) for value in onnx.load(exported[0] / MODEL).graph.initializer
    }
    scale, zero_point = ActivationRange(low=-1.0, high=1.0).affine_uint8()
    assert constants["layers.int8_static.input_scale"] == pytest.approx(scale)
    assert constants["layers.int8_static.input_zero_point"] == zero_point
    values, scales = int8_per_channel(Model().layers["int8_static"].weight.detach())
    assert (constants["layers.int8_static.weight_int8"] == values.T.numpy()).all()
    assert (constants["layers.int8_static.weight_scale"] == scales.numpy()).all()
    assert constants["layers.int4_weight_only.weight_int4"].nbytes == 32 * 32 / 2
    assert constants["layers.bf16.weight"].nbytes == 32 * 32 * 2


def test_artefact_is_called_like_the_model(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, details = exported
    loaded = OnnxExporter().load(folder, json.loads(json.dumps(details)), Model)
    x = torch.randn(7, 3, 32, generator=torch.Generator().manual_seed(0))  # sizes it was not traced with
    with torch.inference_mode():
        first, second = loaded(x, double=True)
        exact = Model()(x, double=True)
    assert (first - exact[0]).norm() / exact[0].norm() < 0.1
    assert (second - exact[1]).norm() / exact[1].norm() < 0.1


class Branching(Model):
    def forward(self, x: torch.Tensor, *, double: bool) -> tuple[torch.Tensor, ...]:
        return super().forward(x if x.sum() > 0 else -x, double=double)


class Wasteful(Model):
    def forward(self, x: torch.Tensor, *, double: bool) -> tuple[torch.Tensor, ...]:
        self.layers["bf16"](x)
        return (self.layers["fp32"](x),)


def test_model_that_looks_at_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must not depend on the values of its inputs"):
        OnnxExporter().write(source_of(Branching()), tmp_path)


def test_layer_whose_output_is_not_used_is_named(tmp_path: Path) -> None:
    model = Wasteful()
    model.layers = nn.ModuleDict({name: model.layers[name] for name in ("fp32", "bf16")})
    with pytest.raises(ExportError, match=r"lacks the layers layers\.bf16:"):
        OnnxExporter().write(source_of(model), tmp_path)


def test_single_samples_and_odd_embeddings_are_refused() -> None:
    layers = source_of(Model()).layers
    conv = replace(layers[0], kind=LayerKind.CONV2D, weight_shape=(4, 3, 3, 3), input_shape=(3, 8, 8))
    assert OnnxExporter().refuses(conv, CHOICES["int8_static"]) == (
        "ONNX convolves batches only, but this layer takes single samples"
    )
    embedding = replace(layers[0], kind=LayerKind.EMBEDDING, weight_shape=(9, 7))
    assert "but this embedding has 7" in str(OnnxExporter().refuses(embedding, CHOICES["int4_weight_only"]))


class Calls(Task):
    """Passes whatever a test wants."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        result: torch.Tensor = model(*batch) if batch is not None else torch.zeros(1)
        return result


def test_dimensions_vary_where_batches_differ() -> None:
    batches = [(torch.zeros(2, 5, 3), 7), (torch.zeros(2, 6, 3), 7)]
    found = signature(Calls(), nn.Identity(), batches)  # type: ignore[arg-type]
    assert found.varying == {0: (0, 1)}
    assert found.call(lambda x, seven: (x.shape, seven), [torch.ones(4)]) == ((4,), 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([([torch.zeros(2)],)], "argument 0 is a list; only tensors"),
        ([(torch.zeros(2),), (None,)], "not the same kind of tensor"),
        ([(torch.zeros(2),), (torch.zeros(2, 2),)], "not the same kind of tensor"),
        ([None], "never calls its model"),
    ],
)
def test_calls_that_no_graph_can_take_are_refused(batches: list[Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        signature(Calls(), nn.Identity(), batches)  # type: ignore[arg-type]


def test_outputs_are_read_by_key_attribute_and_position() -> None:
    outputs = Outputs(first=torch.ones(1), second=torch.zeros(1))
    assert outputs.first is outputs["first"] is outputs[0]
    with pytest.raises(AttributeError, match="no output 'third'; it has first, second"):
        _ = outputs.third
    with pytest.raises(BackendError, match="returns a int"):
        named_outputs(3)


def test_file_tells_nothing_of_the_machine_it_was_written_on(exported: tuple[Path, dict[str, Any]]) -> None:
    content = (exported[0] / MODEL).read_bytes()
    assert b"site-packages" not in content
    assert b"File " not in content
