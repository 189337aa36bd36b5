"""Maps that were measured by the torchao backend keep its numbers in the formats that torchao holds."""

import functools
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import FqnToConfig

from autotune import exporters
from autotune.exporters import torchao_layers
from autotune.exporters.export import export, read_source
from autotune.exporters.manifest import Manifest
from autotune.maps.map_file import MapFile
from search_spaces.choice import CHOICES, choice_named
from search_spaces.layer import Layer
from workers.backends.torchao.backend import TorchAoBackend
from workers.device.processor import this_processor
from workers.model.prepared import PreparedModel
from workers.quality import outputs
from workers.task import Split
from workers.tasks import build_task, load_task_file

DATA = Path(__file__).parents[2] / "data"
load_task_file(str(DATA / "export_tasks.py"))
maps = SimpleNamespace(**runpy.run_path(str(DATA / "export_maps.py")))
BACKEND = TorchAoBackend("cpu")
#: Choices that the backend or the export has none of.
NEVER = ("fp8_static", "int8_dynamic_per_token")
#: Choices whose layers multiply in fp32 outside of the backend, which does it in bf16.
WIDENED = {"int8_weight_only", "int4_weight_only", "int4_weight_only_gptq"}


def document(task_name: str, choices: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = maps.with_choices(task_name, choices, "torchao")
    return found


def difference(folder: Path, format_name: str, exported: Mapping[str, Any]) -> float:
    """How far the loaded export is from the backend's own model, relative to its outputs."""
    file = MapFile.model_validate(exported)
    export(exported, format_name, folder)
    task, source = build_task(file.task, {}), read_source(file)
    exporter = exporters.build_exporter(format_name)
    loaded = exporter.load(folder, Manifest.read(folder).details, task.build_model)
    prepared = PreparedModel(source.model, source.layers, BACKEND, file.ranges(), weight_bits=file.weight_bits())
    prepared.apply(file.quantization_map().names)
    actual, expected = (outputs(task, model, Split.EVALUATION) for model in (loaded, prepared.model))
    return float((actual - expected).norm() / expected.norm())


@functools.cache
def layers_of(task_name: str) -> tuple[Layer, ...]:
    return read_source(MapFile.model_validate(document(task_name, {}))).layers


def able(task_name: str, choice: str) -> list[str]:
    exporter = exporters.build_exporter("torchao")
    wanted = choice_named(choice).with_weight_bits(this_processor().int8_weight_bits)
    return [
        layer.name
        for layer in layers_of(task_name)
        if exporter.refuses(layer, wanted) is None and BACKEND.refuses(layer, wanted) is None
    ]


@pytest.mark.parametrize("choice", [name for name in CHOICES if name not in ("fp32", *NEVER)])
def test_export_computes_what_the_backend_does(choice: str, tmp_path: Path) -> None:
    names = able("tiny-bert", choice)
    assert len(names) >= 12
    apart = difference(tmp_path / "out", "torchao", document("tiny-bert", dict.fromkeys(names, choice)))
    assert apart < (0.01 if choice in WIDENED else 1e-6)


@pytest.mark.parametrize(("format_name", "task_name"), [("torchao", "tiny-cnn"), ("torch-export", "tiny-cnn")])
def test_neighbours_of_every_choice_are_exported_together(format_name: str, task_name: str, tmp_path: Path) -> None:
    every = {choice: able(task_name, choice) for choice in CHOICES}
    layers = list(document(task_name, {})["layers"])
    offers = {layer: [choice for choice, names in every.items() if layer in names] for layer in layers}
    choices = {layer: names[index % len(names)] for index, (layer, names) in enumerate(offers.items())}
    assert len(set(choices.values())) >= 3
    assert difference(tmp_path / "out", format_name, document(task_name, choices)) < 0.01


def test_fp8_with_a_static_range_is_refused_with_a_way_out() -> None:
    layer = layers_of("tiny-bert")[-1]
    reason = exporters.build_exporter("torchao").refuses(layer, choice_named("fp8_static"))
    assert reason == "torchao has no fp8 tensor with a static scale; use fp8_dynamic or int8_static"


def test_types_that_layers_compute_in_are_told_beside_the_weights(tmp_path: Path) -> None:
    first, second, *_ = able("tiny-bert", "fp8_dynamic")
    details = export(document("tiny-bert", {first: "fp8_dynamic", second: "fp16"}), "torchao", tmp_path / "out").details
    assert details == {"computed_in": {first: "bfloat16", second: "float16"}}
    assert all(hasattr(torch, name) for name in details["computed_in"].values())


def test_tensors_of_the_root_module_come_back(tmp_path: Path) -> None:
    def model(value: float) -> nn.Module:
        built = nn.Sequential(nn.Linear(2, 2, bias=False))
        built.positions = nn.Parameter(torch.full((3,), value))
        return built

    torchao_layers.save(model(7.0), FqnToConfig({}), tmp_path / "weights", tmp_path / "config.json")
    loaded = torchao_layers.load(model(0.0), tmp_path / "weights")
    assert loaded.positions.tolist() == [7.0, 7.0, 7.0]
