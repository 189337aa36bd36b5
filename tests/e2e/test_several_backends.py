"""One job on two runtimes through the real command: run, look, export, verify, and go on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COMMAND = str(Path(sys.executable).with_name("autotune"))
JOB: dict[str, Any] = {
    "name": "two",
    "task": {"name": "digits-cnn"},
    "backend": ["cpu", "onnxruntime"],
    "objectives": ["latency_p50_ms", "divergence"],
    "search": {"trials": 6, "choices": ["fp32", "bf16", "int8_static", "int8_dynamic"]},
    "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backends")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Run the command in the folder of a finished job, and check how it ends."""

    def invoke(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "AUTOTUNE_DATABASE"}
        done = subprocess.run(
            [COMMAND, *arguments], cwd=folder, env=environment | {"COLUMNS": "80"}, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    invoke("run", "job.yaml")
    return invoke


@pytest.fixture(scope="module")
def trials(run: Run) -> list[dict[str, Any]]:
    found = json.loads(run("front", "last", "--json").stdout)
    return [*found["front"], *found["baselines"]]


def test_every_baseline_says_where_it_ran(run: Run, trials: list[dict[str, Any]]) -> None:
    where = {(trial["label"], trial["backend"]) for trial in trials if trial["label"]}
    assert where >= {
        ("fp32", "cpu"), ("fp32", "onnxruntime"), ("uniform int8_static", "cpu"), ("uniform int8_static", "onnxruntime")
    }  # fmt: skip
    shown = run("front", "last").stdout
    assert "on onnxruntime" in " ".join(shown.split())
    told = " ".join(shown.split())
    assert "The same map on several backends: fp32: 1.00x on cpu, " in told, told[300:]
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_map_of_another_runtime_is_exported_to_it_and_keeps_its_promises(
    run: Run, trials: list[dict[str, Any]], folder: Path
) -> None:
    (number, *_) = [
        t["number"] for t in trials if t["backend"] == "onnxruntime" and t["label"] == "uniform int8_static"
    ]
    shown = run("show", "last", str(number)).stdout
    assert "onnxruntime" in shown
    assert "to onnxruntime." in run("export", "last", "--pick", str(number)).stderr
    assert "to map.json." in run("export", "last", "--pick", str(number), "--format", "map").stderr
    document = json.loads((folder / "map.json").read_text())
    assert (document["backend"], document["reference_backend"]) == ("onnxruntime", "cpu")
    # The model takes microseconds, so its latencies say little; the rest must hold.
    loose = ("--repeats", "20", "--tolerance", "100", "--json")
    for path in ("map.json", "onnxruntime"):
        run("verify", path, *loose)
    exact = json.loads((folder / "onnxruntime" / "verification.json").read_text())
    (apart,) = [check for check in exact["checks"] if check["name"] == "divergence_from_backend"]
    assert apart["measured"] <= 1e-5


def test_more_trials_go_on_where_the_search_stopped(run: Run) -> None:
    before = json.loads(run("show", "last", "--json").stdout)["job"]
    run("plan", "last", "--trials", "9")
    run("resume", "last")
    after = json.loads(run("show", "last", "--json").stdout)["job"]
    assert after["trials"] > before["trials"]


def test_an_unknown_backend_is_named_with_the_known_ones(run: Run, folder: Path) -> None:
    (folder / "wrong.yaml").write_text(yaml.safe_dump(JOB | {"backend": ["cpu", "onxruntime"]}))
    told = " ".join(run("run", "wrong.yaml", code=6).stderr.split())
    assert "unknown backend 'onxruntime'" in told
    assert "onnxruntime" in told
