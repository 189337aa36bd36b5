"""Models with parametrized weights are exported and applied like the plain models that they compute."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from autotune import exporters
from autotune.exporters.export import export, read_source
from autotune.exporters.manifest import Manifest
from autotune.maps.apply import NativeMap
from autotune.maps.map_file import MapFile
from workers import quality
from workers.task import Split
from workers.tasks import build_task, register
from workers.tasks.generic import GenericTask

maps = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "data" / "export_maps.py")))


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        normed = [parametrizations.weight_norm(nn.Linear(32, 32)), parametrizations.spectral_norm(nn.Linear(32, 32))]
        return nn.Sequential(normed[0], nn.ReLU(), normed[1], nn.ReLU(), nn.Linear(32, 8)).eval()


@register("normed")
def normed() -> GenericTask:
    generator = torch.Generator().manual_seed(1)
    return GenericTask(build, [torch.randn(16, 32, generator=generator) for _ in range(3)])


def document() -> dict[str, object]:
    return {**maps.blank("normed"), "layers": layers()}


def layers() -> dict[str, dict[str, object]]:
    return {name: {**layer, "choice": "int8_weight_only"} for name, layer in maps.blank("normed")["layers"].items()}


@pytest.mark.parametrize("name", ["torchao", "torch-export", "onnxruntime", "openvino"])
def test_an_export_computes_what_the_applied_map_computes(name: str, tmp_path: Path) -> None:
    task = build_task("normed", {})
    applied = NativeMap(MapFile.model_validate(document())).apply(build())
    assert not parametrize.is_parametrized(applied[0])
    expected = quality.outputs(task, applied, Split.EVALUATION)
    export(document(), name, tmp_path / "out")
    exporter, manifest = exporters.build_exporter(name), Manifest.read(tmp_path / "out")
    source = read_source(MapFile.model_validate(document()))
    loaded = exporter.load(tmp_path / "out", manifest.details, source.build_model).eval()
    found = quality.outputs(task, loaded, Split.EVALUATION)
    assert float((found - expected).norm() / expected.norm()) < 0.01
    full = quality.outputs(task, build(), Split.EVALUATION)
    assert not torch.equal(expected, full), "the map has no effect"


def test_a_model_prepared_for_the_weights_of_an_export_is_plain() -> None:
    prepared = NativeMap(MapFile.model_validate(document())).unroll(build())
    assert prepared.state_dict().keys() == {f"{i}.{tensor}" for i in (0, 2, 4) for tensor in ("weight", "bias")}
    copy.deepcopy(prepared)
