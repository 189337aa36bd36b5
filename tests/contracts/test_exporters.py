"""What every exporter promises, over every choice, on an encoder, a CNN and a decoder."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune import exporters
from autotune.exporters.base import Exporter, Source
from autotune.exporters.export import export, read_source
from autotune.exporters.manifest import Manifest
from autotune.map_file import MapFile
from search_spaces.choice import CHOICES, choice_named
from search_spaces.discovery import discover
from search_spaces.fusion import fusion_group
from workers.backends.x86 import X86Backend
from workers.calibration.calibrate import calibrate
from workers.fingerprint import fingerprint
from workers.prepared import PreparedModel
from workers.quality import outputs
from workers.setup import CalibrationSettings
from workers.task import Split
from workers.tasks import build_task, load_task_file

TASK_FILE = str(Path(__file__).parents[1] / "data" / "export_tasks.py")
TASKS = ("tiny-bert", "tiny-cnn", "tiny-llama")
load_task_file(TASK_FILE)


@functools.cache
def blank(task_name: str) -> Mapping[str, Any]:
    """A map of a task with every layer in full precision and every range calibrated."""
    task = build_task(task_name, {})
    model = task.build_model()
    layers = discover(model, lambda m: task.forward(m, task.evaluation(Split.EVALUATION)[0]))
    ranges = calibrate(model, layers, task.calibration(), task.forward, CalibrationSettings()).ranges
    return {
        "schema": "autotune.map/v1",
        "task": task_name,
        "task_parameters": {},
        "backend": "x86",
        "model_fingerprint": fingerprint(model),
        "layers": {
            layer.name: {
                "kind": layer.kind,
                "weight_shape": list(layer.weight_shape),
                "choice": "fp32",
                "input_range": [ranges[layer.name].low, ranges[layer.name].high] if layer.name in ranges else None,
            }
            for layer in layers
        },
        "measurement": {},
        "promised": {"accuracy": {"value": 1.0}},
        "provenance": {
            "job": "j", "job_name": "tiny", "trial": 1, "measured_at": "2026-01-01T00:00:00Z", "seed": 0,
            "calibration": {}, "calibration_samples": 16, "environment": {},
        },
    }  # fmt: skip


def with_choices(task_name: str, choices: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(blank(task_name)))
    for name, choice in choices.items():
        document["layers"][name]["choice"] = choice
    return document


@functools.cache
def source(task_name: str) -> Source:
    return read_source(MapFile.model_validate(blank(task_name)))


def expressible(exporter: Exporter, task_name: str, choice: str) -> dict[str, str]:
    """The map that gives the choice to every fusion group that may take it in the format and on the backend."""
    backend, wanted = X86Backend(), choice_named(choice)
    refused = {
        fusion_group(layer.name)
        for layer in source(task_name).layers
        if exporter.refuses(layer, wanted) or backend.refuses(layer, wanted)
    }
    return {layer.name: choice for layer in source(task_name).layers if fusion_group(layer.name) not in refused}


@pytest.fixture(params=exporters.exporter_names())
def exporter(request: pytest.FixtureRequest) -> Exporter:
    return exporters.build_exporter(request.param)


@pytest.fixture(params=TASKS)
def task_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def both_outputs(exporter: Exporter, document: Mapping[str, Any], folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the loaded artefact, and of our own backend, on the evaluation data."""
    file = MapFile.model_validate(document)
    manifest = Manifest.read(folder)
    task = build_task(file.task, file.task_parameters)
    loaded = exporter.load(folder, manifest.details, task.build_model)
    own = source(file.task)
    prepared = PreparedModel(task.build_model(), own.layers, X86Backend(), file.ranges())
    prepared.apply(file.quantization_map().names)
    return outputs(task, loaded, Split.EVALUATION), outputs(task, prepared.model, Split.EVALUATION)


@pytest.mark.parametrize("choice", CHOICES)
def test_export_computes_what_the_backend_computes(
    exporter: Exporter, task_name: str, choice: str, tmp_path: Path
) -> None:
    choices = expressible(exporter, task_name, choice)
    if not choices:
        pytest.skip("the format or the backend cannot express it")
    document = with_choices(task_name, choices)
    export(document, exporter.name, tmp_path / "out")
    actual, expected = both_outputs(exporter, document, tmp_path / "out")
    assert actual.shape == expected.shape
    error = float((actual - expected).norm() / expected.norm())
    print(exporter.name, task_name, choice, len(choices), f"{error:.2e}")
    assert error < 0.01
