"""The real command with a task that prints everywhere and has no held-out data."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COMMAND = str(Path(sys.executable).with_name("autotune"))
TASK_FILE = str(Path(__file__).parents[1] / "data" / "difficult_tasks.py")
JOB = {
    "schema": "autotune.job/v1", "name": "difficult",
    "task": {"name": "difficult", "parameters": {"held_out": "raises"}},
    "objectives": ["latency_p50_ms", "divergence"], "search": {"trials": 3, "choices": ["fp32", "int8_weight_only"]},
    "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
}  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return invoke


def data_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what was printed as JSON; anything else on standard output fails."""
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.parametrize("pool", ["inline", "ray"])
def test_prints_of_tasks_leave_standard_output_to_data(run: Run, tmp_path: Path, pool: str) -> None:
    Path(tmp_path, "job.yaml").write_text(yaml.safe_dump(JOB | {"workers": {"pool": pool}}), encoding="utf-8")
    ran = run("run", "job.yaml", "--task-file", TASK_FILE, "--json")
    best = data_of(ran)["front"]
    assert best
    if pool == "ray":
        return  # its workers print into Ray's own logs
    assert "loading weights ..." in ran.stderr
    assert "a library that prints" in ran.stderr
    finals = [trial for trial in data_of(ran)["baselines"] if trial["kind"] == "final"]
    assert finals
    for trial in finals:
        assert trial["message"] == "no held-out accuracy: NotImplementedError: no held-out data yet"
        assert "held_out_accuracy" not in trial["figures"]
    number = str(finals[0]["number"])
    assert "no held-out accuracy" in run("show", "last", number).stdout
    data_of(run("tasks", "--task-file", TASK_FILE, "--json"))
    data_of(run("export", "last", "--pick", number, "--format", "torchao", "--task-file", TASK_FILE, "--json"))
    run("export", "last", "--pick", number)
    verified = run("verify", "map.json", "--task-file", TASK_FILE, "--tolerance", "20", "--json")
    held_out = {"accuracy": None, "full_precision": None, "missing": "NotImplementedError: no held-out data yet"}
    assert data_of(verified)["held_out"] == held_out
    assert "evaluating on" in verified.stderr
    checks = data_of(run("verify", "torchao", "--task-file", TASK_FILE, "--json"))["verification"]["checks"]
    assert "held_out_accuracy" not in {check["name"] for check in checks}
