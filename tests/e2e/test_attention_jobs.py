"""A job on PyTorch's own transformer, from search to what can be done with its map: attention included."""

from pathlib import Path
from typing import Any

import pytest
import torch

import autotune
from autotune.client.actions import submit
from autotune.exporters import build_exporter
from autotune.exporters.export import export
from autotune.exporters.manifest import Manifest
from autotune.exporters.verify import verify_export
from autotune.jobs.records import JobState
from autotune.jobs.spec import JobSpec
from autotune.maps import map_file
from autotune.maps.map_file import map_document
from autotune.search.run import run_job
from autotune.store.in_memory import MemoryStore
from search_spaces.errors import MapError
from workers.task import Split
from workers.tasks import build_task, load_task_file

TASK_FILE = str(Path(__file__).parents[1] / "data" / "export_tasks.py")
JOB = {
    "name": "transformer",
    "task": {"name": "tiny-transformer"},
    "objectives": ["latency_p50_ms", "divergence"],
    "search": {"choices": ["fp32", "int8_static", "int8_dynamic"], "trials": 4, "seed": 3},
    "measurement": {"batch_sizes": [1], "repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}
PROJECTIONS = {
    f"encoder.layers.{i}.self_attn.{p}" for i in range(2) for p in ("q_proj", "k_proj", "v_proj", "out_proj")
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The map of the trial that gave every layer int8 dynamic."""
    load_task_file(TASK_FILE)
    store = MemoryStore()
    job = run_job(store, submit(store, JobSpec.parse(JOB)).id, task_file=TASK_FILE)
    assert job.state is JobState.FINISHED
    assert job.description is not None
    assert job.description.skipped == {}
    trials = store.trials(job.id)
    assert [trial.error for trial in trials if not trial.figures] == []
    uniform = next(t for t in trials if {t.choices[name] for name in PROJECTIONS} == {"int8_dynamic"})
    return map_document(job, uniform)


def outputs(model: torch.nn.Module) -> torch.Tensor:
    task = build_task("tiny-transformer", {})
    with torch.inference_mode():
        return torch.cat([task.forward(model.eval(), batch) for batch in task.evaluation(Split.EVALUATION)])


@pytest.fixture(scope="module")
def quantized(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What the model says after the map was applied to it."""
    path = tmp_path_factory.mktemp("map") / "map.json"
    map_file.write(document, path)
    model = build_task("tiny-transformer", {}).build_model()
    exact = outputs(model)
    actual = outputs(autotune.load_map(path).apply(model))
    assert not isinstance(model.get_submodule("encoder.layers.0.self_attn.q_proj"), torch.nn.Linear)
    assert 0.0 < float((actual - exact).norm() / exact.norm()) < 0.05
    return actual


@pytest.mark.parametrize("name", ["onnxruntime", "torchao", "torch-export"])
def test_formats_of_whole_models_hold_unrolled_attention(
    name: str, document: dict[str, Any], quantized: torch.Tensor, tmp_path: Path
) -> None:
    export(document, name, tmp_path / "out")
    task = build_task("tiny-transformer", {})
    native = autotune.load_map(tmp_path / "out" / "map.json")
    details = Manifest.read(tmp_path / "out").details
    loaded = build_exporter(name).load(tmp_path / "out", details, lambda: native.unroll(task.build_model()))
    assert float((outputs(loaded) - quantized).norm() / quantized.norm()) < 0.01


def test_verification_loads_unrolled_attention_in_a_fresh_process(document: dict[str, Any], tmp_path: Path) -> None:
    export(document, "torchao", tmp_path / "out")
    assert verify_export(tmp_path / "out", task_file=TASK_FILE).holds


def test_map_that_does_not_fit_leaves_attention_as_it_was(document: dict[str, Any], tmp_path: Path) -> None:
    map_file.write(document, tmp_path / "map.json")
    model = build_task("tiny-transformer", {}).build_model()
    with torch.no_grad():
        model.get_parameter("head.bias").add_(1.0)
    with pytest.raises(MapError, match="other weights"):
        autotune.load_map(tmp_path / "map.json").apply(model)
    assert isinstance(model.get_submodule("encoder.layers.0.self_attn"), torch.nn.MultiheadAttention)
