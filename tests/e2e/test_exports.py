"""A pick of a job through the real command: exported, loaded by its runtime in a fresh process, verified."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from autotune.errors import ExportError
from autotune.exporters.manifest import MAP, Manifest, describe
from autotune.exporters.verify import verify_export

COMMAND = str(Path(sys.executable).with_name("autotune"))
TASK_FILE = str(Path(__file__).parents[1] / "data" / "export_tasks.py")
JOB = {
    "schema": "autotune.job/v1",
    "name": "small",
    "task": {"name": "tiny-cnn"},
    "objectives": ["latency_p50_ms", "divergence"],
    "search": {"trials": 8, "seed": 3},
    "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Run the command in the folder of a finished job, as a user would, and check how it ends."""

    def invoke(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "AUTOTUNE_DATABASE"} | {
            "COLUMNS": "80"
        }
        done = subprocess.run(
            [COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        assert "Warning" not in done.stdout + done.stderr
        return done

    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    invoke("run", "job.yaml", "--task-file", TASK_FILE)
    return invoke


@pytest.fixture(scope="module")
def exported(run: Run, folder: Path) -> Path:
    done = run("export", "last", "--pick", "smallest", "-f", "onnxruntime", "-o", "ort", "--task-file", TASK_FILE)
    assert "Wrote trial" in done.stderr
    return folder / "ort"


def test_export_says_whether_figures_are_of_the_search_alone(run: Run, folder: Path) -> None:
    # Baselines are measured whatever the limit; after it nothing is.
    hasty = JOB | {"name": "hasty", "search": {"trials": 8, "time_limit_s": 0.01}}
    (folder / "hasty.yaml").write_text(yaml.safe_dump(hasty))
    run("run", "hasty.yaml", "--task-file", TASK_FILE, "-d", "sqlite:///hasty.db")
    told = "this map was not re-measured"
    assert told in run("export", "last", "--pick", "fastest", "-o", "hasty.json", "-d", "sqlite:///hasty.db").stderr
    assert told not in run("export", "last", "--pick", "fastest", "-o", "calm.json").stderr


def verification(run: Run, path: str, code: int = 0) -> dict[str, Any]:
    # The model takes microseconds, so its latencies say little; the rest must hold.
    arguments = ("--task-file", TASK_FILE, "--repeats", "20", "--tolerance", "100", "--json")
    document: dict[str, Any] = json.loads(run("verify", path, *arguments, code=code).stdout)["verification"]
    return document


def checks_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in document["checks"]}


def test_export_to_onnxruntime_is_verified_in_a_fresh_process(run: Run, exported: Path) -> None:
    document = verification(run, "ort")
    assert document["holds"]
    assert document["untimed"] is None
    assert document == json.loads((exported / "verification.json").read_text())
    checks = checks_of(document)
    promised = json.loads((exported / MAP).read_text())["promised"]
    assert checks["accuracy"]["expected"] == promised["accuracy"]["value"]
    assert checks["divergence_from_backend"]["measured"] <= checks["divergence_from_backend"]["limit"]
    assert checks["latency_p50_ms"]["measured"] > 0.0
    assert checks["size_mib"]["measured"] > promised["weight_memory_mib"]["value"]


@pytest.mark.slow
def test_what_onnxruntime_was_searched_with_is_what_it_runs(run: Run, folder: Path) -> None:
    job = JOB | {"name": "graphs", "backend": "onnxruntime", "search": {"trials": 3, "sampler": "random", "seed": 0}}
    (folder / "graphs.yaml").write_text(yaml.safe_dump(job))
    run("run", "graphs.yaml", "--task-file", TASK_FILE)
    run("export", "graphs", "--pick", "1", "-f", "onnxruntime", "-o", "graphs", "--task-file", TASK_FILE)
    document = verification(run, "graphs")
    assert document["holds"]
    apart = checks_of(document)["divergence_from_backend"]
    assert apart["measured"] == 0.0
    assert apart["limit"] == 1e-5
    promised = json.loads((folder / "graphs" / MAP).read_text())["promised"]
    assert promised["session_ms"]["value"] > 0.0
    constants = onnx.load(folder / "graphs" / "model.onnx").graph.initializer
    assert sum(len(value.raw_data) for value in constants) == promised["weight_memory_mib"]["value"] * 2**20


@pytest.mark.slow
def test_what_openvino_was_searched_with_is_what_it_runs(run: Run, folder: Path) -> None:
    job = JOB | {"name": "compiled", "backend": "openvino", "search": {"trials": 3, "sampler": "random", "seed": 0}}
    (folder / "compiled.yaml").write_text(yaml.safe_dump(job))
    run("run", "compiled.yaml", "--task-file", TASK_FILE)
    run("export", "compiled", "--pick", "1", "-f", "openvino", "-o", "compiled", "--task-file", TASK_FILE)
    document = verification(run, "compiled")
    assert document["holds"]
    apart = checks_of(document)["divergence_from_backend"]
    assert apart["measured"] == 0.0
    assert apart["limit"] == 1e-5
    promised = json.loads((folder / "compiled" / MAP).read_text())["promised"]
    assert promised["session_ms"]["value"] > 0.0
    layers = json.loads((folder / "compiled" / "layers.json").read_text())
    assert all(layer["operators"] for layer in layers.values())


def test_figures_fit_the_terminal(run: Run, exported: Path) -> None:
    shown = run("verify", exported.name, "--task-file", TASK_FILE, "--repeats", "20", "--tolerance", "100")
    assert "divergence from backend" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert shown.stderr.splitlines()[1:3] == ["Measuring the export", "Loading the model"]


def test_export_that_computes_something_else_is_found_out(run: Run, exported: Path, folder: Path) -> None:
    path = Path(shutil.copytree(exported, folder / "wrong"), "model.onnx")
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if constant.data_type == onnx.TensorProto.FLOAT:
            constant.CopyFrom(onnx.numpy_helper.from_array(0.5 * onnx.numpy_helper.to_array(constant), constant.name))
    onnx.save(model, path)
    with pytest.raises(ExportError, match="missing or was changed after the export; export again"):
        verify_export(path.parent, task_file=TASK_FILE)

    accept(path)
    checks = checks_of(verification(run, "wrong", code=5))
    assert not checks["divergence_from_backend"]["holds"]

    path.write_bytes(b"no graph")
    accept(path)
    with pytest.raises(ExportError, match=r"does not run in its runtime: .*cannot load"):
        verify_export(path.parent, task_file=TASK_FILE)


def test_report_and_tables_come_from_the_records_alone(run: Run, folder: Path) -> None:
    # Without the task's file, because nothing is built; and in two processes, whose sets have different orders.
    for name in ("first.html", "second.html"):
        run("export", "last", "--pick", "fastest", "-f", "report", "-o", name)
    page = (folder / "first.html").read_bytes()
    assert page == (folder / "second.html").read_bytes()
    assert b"lowest median latency" in page
    assert "Wrote" in run("export", "last", "-f", "csv").stderr
    trials = (folder / "csv" / "trials.csv").read_text().splitlines()
    assert len(trials) > len((folder / "csv" / "front.csv").read_text().splitlines()) > 1


def accept(path: Path) -> None:
    """Note a changed file in the manifest as if it had been exported so."""
    manifest = Manifest.model_validate_json((path.parent / "export.json").read_bytes())
    manifest.model_copy(update={"files": manifest.files | {path.name: describe(path)}}).write(path.parent)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "last", "-f", "onxruntime"], 2, "unknown format 'onxruntime'; did you mean 'onnxruntime'?"),
        (["export", "last", "-f", "onnxruntime", "-o", "."], 8, "exists but is not an export"),
        (["export", "last", "-f", "onnxruntime"], 2, "unknown task 'tiny-cnn'"),
        (["verify", "."], 5, "is not an export: cannot read export.json"),
    ],
)
def test_errors_say_what_to_do(run: Run, arguments: list[str], code: int, message: str) -> None:
    assert message in " ".join(run(*arguments, code=code).stderr.split())
