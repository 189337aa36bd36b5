"""The main job through the real command: from a job file to a verified map, and back from a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import autotune
from autotune.store.open import open_store
from search_spaces.errors import MapError
from workers.tasks import build_task, load_task_file

COMMAND = str(Path(sys.executable).with_name("autotune"))
TASK_FILE = str(Path(__file__).parents[1] / "data" / "fragile_task.py")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job()))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run the command in a folder of its own, as a user would, and check how it ends."""

    def invoke(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        assert "Warning" not in done.stdout + done.stderr
        return done

    return invoke


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "AUTOTUNE_DATABASE"} | {"COLUMNS": "80"}


def job(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "autotune.job/v1",
        "name": "small",
        "task": {"name": "fragile"},
        "objectives": ["latency_p50_ms", "divergence"],
        "search": {"trials": 12, "seed": 3},
        "measurement": {"repeats": 20, "warmup_s": 0.0, "threads": 1},
        "workers": {"pool": "inline"},
    } | changes


def data_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(done.stdout)
    assert data.pop("schema") == "autotune.cli/v1"
    return data


def test_from_job_file_to_verified_map(run: Run, folder: Path) -> None:
    shown = run("run", "job.yaml", "--task-file", TASK_FILE)
    assert "Pareto front of small" in shown.stdout
    assert "uniform s8" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80

    front = data_of(run("front", "last", "--json"))
    assert front["job"]["state"] == "finished"
    assert front["job"]["trials"] == 12
    assert [trial["label"] for trial in front["baselines"]][:2] == ["fp32", "uniform bf16"]
    assert front["front"]
    assert {trial["number"] for trial in front["front"]} == set(front["job"]["front"])

    run("export", "small", "--pick", "fastest", "--output", "out/map.json")
    document = json.loads((folder / "out" / "map.json").read_text())
    number = document["provenance"]["trial"]
    trial = data_of(run("show", "last", str(number), "--json"))["trial"]
    assert {name: layer["choice"] for name, layer in document["layers"].items()} == trial["choices"]
    assert document["promised"]["accuracy"]["value"] == trial["figures"]["accuracy"]["value"]

    # The model takes microseconds, so latencies of two processes may differ by a lot; the rest must be equal.
    verified = data_of(run("verify", "out/map.json", "--task-file", TASK_FILE, "--tolerance", "20", "--json"))
    assert verified["holds"]
    assert {check["metric"] for check in verified["checks"]} == {"accuracy", "weight_memory_mib", "latency_ratio"}
    assert 0.0 < verified["held_out"]["accuracy"] <= 1.0

    assert data_of(run("jobs", "--json"))["jobs"][0]["name"] == "small"
    run("jobs")
    run("show", "last")
    run("show", "last", "0")


def test_exported_map_applies_in_python(run: Run, folder: Path) -> None:
    run("run", "job.yaml", "--task-file", TASK_FILE)
    run("export", "last", "--pick", "smallest")
    load_task_file(TASK_FILE)
    task = build_task("fragile", {})
    original, model = task.build_model(), task.build_model()
    quantized = autotune.load_map(folder / "map.json").apply(model)
    batch = task.latency_batch(4)
    with torch.no_grad():
        difference = (quantized(batch) - original(batch)).abs().max()
        assert 0.0 < difference < 0.2
        original[0].weight[0, 0] += 1.0  # type: ignore[index,union-attr,operator]
    with pytest.raises(MapError, match="fingerprints differ"):
        autotune.load_map(folder / "map.json").apply(original)
    with pytest.raises(MapError, match="has no layer '0'"):
        autotune.load_map(folder / "map.json").apply(torch.nn.Sequential())


def test_tampered_map_does_not_verify(run: Run, folder: Path) -> None:
    run("run", "job.yaml", "--task-file", TASK_FILE)
    run("export", "last", "--pick", "smallest")
    path = folder / "map.json"
    document = json.loads(path.read_text())
    document["promised"]["accuracy"]["value"] -= 0.1
    path.write_text(json.dumps(document))
    done = run("verify", "map.json", "--task-file", TASK_FILE, "--tolerance", "20", code=5)
    assert "BROKEN" in done.stdout


def test_killed_driver_loses_no_finished_trial_and_the_job_goes_on(run: Run, folder: Path) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump(job(search={"trials": 24, "seed": 1})))
    process = subprocess.Popen(
        [COMMAND, "run", "job.yaml", "--task-file", TASK_FILE],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"sqlite:///{folder}/autotune.db"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if (folder / "autotune.db").exists() and count(url) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(url)
    assert 8 <= len(before) < 24

    run("resume", "last", "--task-file", TASK_FILE)
    after = trials(url)
    assert [trial.number for trial in after] == list(range(24))
    assert after[: len(before)] == before
    assert len({trial.key for trial in after}) == 24
    assert data_of(run("show", "last", "--json"))["events"][-1]["kind"] == "finished"


def count(url: str) -> int:
    try:
        return len(trials(url))
    except Exception:  # the driver may be making the database just now
        return 0


def trials(url: str) -> list[Any]:
    store = open_store(url, read_only=True)
    try:
        jobs = store.jobs()
        return store.trials(jobs[0].id) if jobs else []
    finally:
        store.close()


def test_nothing_feasible_names_the_nearest(run: Run, folder: Path) -> None:
    limits = {"latency_p50_ms": {"max": 1e-6}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job(constraints=limits)))
    shown = run("run", "job.yaml", "--task-file", TASK_FILE)
    assert "No map satisfies the constraints. Nearest is trial" in shown.stderr
    done = run("export", "last", code=4)
    assert "Nearest is trial" in done.stderr
    assert "misses latency_p50_ms = " in done.stderr


def test_memory_limit_rules_maps_out_before_they_run(run: Run, folder: Path) -> None:
    limits = {"weight_memory_mib": {"max": 0.004}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job(constraints=limits, search={"trials": 20})))
    front = data_of(run("run", "job.yaml", "--task-file", TASK_FILE, "--json"))
    assert all(trial["figures"]["weight_memory_mib"]["value"] <= 0.004 for trial in front["front"])
    numbers = range(20)
    shown = [data_of(run("show", "last", str(number), "--json"))["trial"] for number in numbers][6:]
    ruled_out = [trial for trial in shown if trial["state"] == "rejected"]
    assert ruled_out
    assert all(set(trial["figures"]) == {"weight_memory_mib"} for trial in ruled_out)


WRONG = [
    (["run", "missing.yaml"], 2, "cannot read job file"),
    (["run", "job.yaml"], 2, "unknown task 'fragile'"),
    (["show", "last"], 7, "there is no database"),
    (["export", "last", "-d", "mysql://somewhere/db"], 7, "a database URL must be sqlite:///FILE or postgresql://"),
    (["verify", "missing.json"], 5, "cannot read the map"),
    (["verify", "job.yaml"], 5, "is not a quantization map"),
    (["dashboard", "--address", "0.0.0.0"], 2, "listens on loopback only"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_errors_say_what_to_do(run: Run, arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments, code=code)
    assert done.stderr.startswith("Error: ") or "Error: " in done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_errors_are_json_on_request(run: Run) -> None:
    run("db", "upgrade")
    done = run("show", "nothing", "--json", code=3)
    assert json.loads(done.stderr)["error"]["kind"] == "NotFoundError"


def test_broken_job_file_lists_every_error_at_once(run: Run, folder: Path) -> None:
    broken = job(objective=["x"], search={"trails": 3, "choices": ["int9"]})
    (folder / "job.yaml").write_text(yaml.safe_dump(broken))
    message = run("run", "job.yaml", code=2).stderr
    assert "objective: unknown key; did you mean 'objectives'?" in message
    assert "search.trails: unknown key; did you mean 'trials'?" in message
    assert "search.choices" in message


def test_init_writes_a_job_that_runs(run: Run, folder: Path) -> None:
    run("init", "new.yaml", "--task", "digits-cnn")
    run("init", "new.yaml", code=8)
    done = run("run", "new.yaml", "--trials", "0", code=2)
    assert "--trials" in done.stderr


def test_tasks_and_doctor(run: Run) -> None:
    names = [task["name"] for task in data_of(run("tasks", "--json"))["tasks"]]
    assert {"minilm-lee", "digits-cnn", "digits-vit"} <= set(names)
    run("tasks")
    report = data_of(run("doctor", "--json"))
    assert report["ok"], report
