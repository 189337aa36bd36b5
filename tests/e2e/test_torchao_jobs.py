"""A job of the torchao backend from search to verified export: on a GPU, and on the CPU by the same code."""

from pathlib import Path
from typing import Any

import pytest
import torch

import autotune
from autotune.client.actions import submit
from autotune.exporters.export import export
from autotune.exporters.verify import verify_export
from autotune.jobs.records import JobState
from autotune.jobs.spec import JobSpec
from autotune.maps import map_file
from autotune.maps.map_file import map_document
from autotune.maps.verify import verify
from autotune.search.run import run_job
from autotune.store.in_memory import MemoryStore
from workers.backends import BACKENDS
from workers.backends.torchao.backend import TorchAoBackend
from workers.tasks import build_task, load_task_file

TASK_FILE = str(Path(__file__).parents[1] / "data" / "export_tasks.py")
CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic", "fp8_dynamic")
JOB = {
    "name": "small",
    "task": {"name": "tiny-bert"},
    "objectives": ["latency_p50_ms", "divergence"],
    "search": {"choices": list(CHOICES), "trials": 8, "seed": 3},
    "measurement": {"batch_sizes": [1, 4], "repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}


@pytest.fixture(
    params=[
        "torchao-on-cpu",
        *(pytest.param(name, marks=pytest.mark.gpu) for name in ("torchao", "torchao-compiled")),
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torchao-on-cpu":
        monkeypatch.setitem(BACKENDS, "torchao", lambda: TorchAoBackend("cpu"))
        return "torchao"
    reason = BACKENDS[request.param]().unavailable()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def test_job_is_searched_exported_and_verified(backend: str, tmp_path: Path) -> None:
    load_task_file(TASK_FILE)
    store = MemoryStore()
    job = submit(store, JobSpec.parse({**JOB, "backend": backend}))
    job = run_job(store, job.id, task_file=TASK_FILE)
    assert job.state is JobState.FINISHED
    trials = store.trials(job.id)
    assert [trial.error for trial in trials if not trial.figures] == []
    assert {trial.environment["backend"] for trial in trials} == {backend}
    assert "torchao" in trials[0].environment["versions"]
    assert {*CHOICES} <= {name for trial in trials for name in trial.choices.values()}
    document = map_document(job, max(trials, key=lambda trial: len({*trial.choices.values()})))
    assert document["backend"] == backend
    assert_usable(document, tmp_path)


def assert_usable(document: dict[str, Any], folder: Path) -> None:
    map_file.write(document, folder / "map.json")
    # The model takes microseconds, so its latencies say little.
    assert verify(map_file.read(folder / "map.json"), repeats=20, tolerance=100.0).holds
    export(document, "torchao", folder / "out")
    verified = verify_export(folder / "out", task_file=TASK_FILE)
    assert verified.holds
    task = build_task("tiny-bert", {})
    model = autotune.load_map(folder / "map.json").apply(task.build_model())
    with torch.inference_mode():
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in task.latency_batch(2).items()}
        assert torch.isfinite(task.forward(model, batch)).all()
