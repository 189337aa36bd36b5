"""A recovered map from its record to what can be done with it; its weights are not learned but moved."""

import dataclasses
import runpy
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import autotune
from autotune.cli.main import main
from autotune.client.actions import submit
from autotune.client.local import LocalClient
from autotune.exporters import build_exporter
from autotune.exporters.export import export, read_source
from autotune.exporters.manifest import Manifest
from autotune.exporters.verify import verify_export
from autotune.jobs.records import Artifact, ArtifactKind, JobRecord, TrialRecord, TrialResult
from autotune.jobs.spec import JobSpec
from autotune.maps import map_file
from autotune.maps.map_file import MapFile, map_document
from autotune.maps.verify import verify
from autotune.metrics.from_measurement import Reference
from autotune.search.run import run_job
from autotune.search.trials import recovered_trial
from autotune.store.base import Store
from autotune.store.open import open_store
from autotune.tuning.result import Result
from search_spaces.errors import MapError
from workers import quality
from workers.measurement import Environment, Measurement
from workers.recovered import Recovered, RecoveryReport, RecoverySettings, digest
from workers.task import Split
from workers.tasks import build_task, load_task_file

DATA = Path(__file__).parents[1] / "data"
TASK_FILE = str(DATA / "export_tasks.py")
recovered_maps = SimpleNamespace(**runpy.run_path(str(DATA / "recovered_maps.py")))
JOB = {
    "name": "transformer",
    "task": {"name": "tiny-transformer"},
    "objectives": ["latency_p50_ms", "divergence"],
    "search": {"choices": ["fp32", "int8_dynamic", "int4_weight_only"], "trials": 4, "seed": 3},
    "measurement": {"batch_sizes": [1], "repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}


@dataclass(frozen=True, kw_only=True)
class Found:
    store: Store
    url: str
    job: JobRecord
    parent: TrialRecord
    trial: TrialRecord
    #: Outputs of the recovered map on the evaluation data.
    outputs: torch.Tensor


def outputs(model: torch.nn.Module) -> torch.Tensor:
    return quality.outputs(build_task("tiny-transformer", {}), model.eval(), Split.EVALUATION)


def accuracy(found: torch.Tensor) -> float:
    return float(build_task("tiny-transformer", {}).accuracy(found, Split.EVALUATION))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """A job with a recovered map of its uniform int4 map."""
    load_task_file(TASK_FILE)
    folder = tmp_path_factory.mktemp("recovered")
    url = f"sqlite:///{folder / 'jobs.db'}"
    store = open_store(url)
    job = run_job(store, submit(store, JobSpec.parse(JOB)).id, task_file=TASK_FILE)
    trials = store.trials(job.id)
    parent = next(trial for trial in trials if trial.label == "uniform int4_weight_only")
    plain = MapFile.model_validate(map_document(job, parent))
    document, content = recovered_maps.recovered(map_document(job, parent), read_source(plain).model)
    map_file.write(document, folder / "map.json", content)
    own = outputs(autotune.load_map(folder / "map.json").apply(build_task("tiny-transformer", {}).build_model()))
    trial = recovered_trial(
        parent, recovery(document, content, accuracy(own)), Reference.of_figures(trials[0].figures), (), 50
    )
    assert trial is not None
    learned = Artifact(sha256=digest(content), kind=ArtifactKind.LEARNED_WEIGHTS, data=content)
    store.record([TrialResult(trial=trial, artifacts=(learned,))], epoch=job.epoch)
    yield Found(store=store, url=url, job=store.job(job.id), parent=parent, trial=trial, outputs=own)
    store.close()


def recovery(document: dict[str, Any], content: bytes, accurate: float) -> Recovered:
    report = RecoveryReport(
        method="moves", settings=RecoverySettings(), seconds=1.0, samples=48, validation_samples=16, before=0.2,
        after=0.1, layers=tuple(document["recovery"]["layers"]), kept={}, sha256=digest(content), nbytes=len(content),
    )  # fmt: skip
    measured = Measurement(
        accuracy=accurate, divergence=0.125, weight_bytes=1, latency=(), working_bytes=None, seconds=1.0,
        forward_seconds=0.5,
        environment=Environment(hardware="cpu", backend="cpu", threads=1, load=0.0, versions={}),
    )  # fmt: skip
    return Recovered(report=report, learned=content, measurement=measured)


def test_its_map_is_exported_verified_and_applied_without_data(found: Found, tmp_path: Path) -> None:
    path = LocalClient(found.store).export(found.job.id, tmp_path / "map.json", choose="50")
    file = map_file.read(path)
    assert file.promised["latency_ratio"] == found.parent.figures["latency_ratio"]
    report = verify(file, repeats=20, tolerance=100.0, task_file=TASK_FILE)
    assert report.holds, report
    assert {check.metric for check in report.checks} == {"accuracy", "weight_memory_mib", "latency_ratio"}
    # Full precision keeps the weights of the model, with which it agrees.
    assert report.held_out is not None
    assert report.held_out[1] == 1.0
    broken = dataclasses.replace(found.parent.figures["accuracy"], value=accuracy(found.outputs) - 0.125)
    wrong = file.model_copy(update={"promised": file.promised | {"accuracy": broken}})
    assert not verify(wrong, repeats=20, tolerance=100.0, task_file=TASK_FILE).holds
    with pytest.raises(MapError, match="this map was recovered, and its learned weights are in"):
        verify(MapFile.model_validate(file.model_dump(by_alias=True)), task_file=TASK_FILE)


def test_its_figures_stand_beside_those_of_its_parent(found: Found) -> None:
    ours, parents = (found.store.latency(found.job.id, trial.number) for trial in (found.trial, found.parent))
    assert [one.candidate_ms.tolist() for one in ours] == [one.candidate_ms.tolist() for one in parents] != []
    assert found.store.tallies([found.job.id])[found.job.id].searched == 4


def test_python_gets_the_same(found: Found, tmp_path: Path) -> None:
    tuned = Result.read(found.store, found.job.id, found.url)[50]
    full = build_task("tiny-transformer", {}).build_model()
    assert torch.equal(outputs(tuned.apply(full)), found.outputs)
    parent = Result.read(found.store, found.job.id, found.url)[found.parent.number]
    assert not torch.allclose(outputs(parent.apply(full)), found.outputs, atol=1e-2)
    saved = autotune.load_map(tuned.save(tmp_path / "saved.json"))
    assert torch.equal(outputs(saved.apply(full)), found.outputs)


def test_the_command_line_writes_and_verifies_it(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["autotune", *arguments])
        with suppress(SystemExit):
            main()
        printed = capsys.readouterr()
        return " ".join((printed.out + printed.err).split())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_DATABASE", found.url)
    of = f"Recovered from trial {found.parent.number}: "
    told = run("export", found.job.id, "--pick", "50", "--output", "maps/best.json")
    assert of in told, told
    report = found.trial.recovery
    assert report is not None
    assert Path("maps", f"map-{report.sha256[:12]}.safetensors").read_bytes() == found.store.artifact(report.sha256)
    assert "The promised figures hold." in run(
        "verify", "maps/best.json", "--repeats", "20", "--tolerance", "100", "--task-file", TASK_FILE
    )
    shown = run("show", found.job.id, "50")
    assert "50: uniform w4, recovered" in shown
    assert of in shown
    run("export", found.job.id, "--pick", "50", "--format", "torchao", "--output", "out", "--task-file", TASK_FILE)
    assert map_file.read("out/map.json").learned == found.store.artifact(report.sha256)


def test_its_export_is_verified_on_its_own_runtime(found: Found, tmp_path: Path) -> None:
    content = found.store.artifact(found.trial.recovery.sha256)  # type: ignore[union-attr]
    document = map_document(found.job, found.trial) | {"backend": "onnxruntime", "reference_backend": None}
    document["promised"] = {"accuracy": document["promised"]["accuracy"]}
    manifest = export(document, "onnxruntime", tmp_path / "out", learned=content, task_file=TASK_FILE)
    assert manifest == Manifest.read(tmp_path / "out")
    file = map_file.read(tmp_path / "out" / "map.json")
    loaded = build_exporter("onnxruntime").load(tmp_path / "out", manifest.details, read_source(file).build_model)
    own = outputs(loaded)
    # bf16 products of PyTorch's kernel are fp32 products here.
    assert torch.allclose(own, found.outputs, atol=1e-2)
    promised = file.promised | {"accuracy": dataclasses.replace(file.promised["accuracy"], value=accuracy(own))}
    report = verify(file.model_copy(update={"promised": promised}), repeats=20, task_file=TASK_FILE)
    assert report.holds, report
    exported = verify_export(tmp_path / "out", repeats=20, tolerance=100.0, task_file=TASK_FILE)
    assert next(check for check in exported.checks if check.name == "divergence_from_backend").holds, exported
