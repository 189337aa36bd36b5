"""The main job through the real command: from a job file to a verified map, and back from a kill."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import autotune
from autotune.cli.sensitivity import shortened
from autotune.client.actions import submit
from autotune.jobs.budget import searched
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Silent, stage_text
from autotune.jobs.records import TrialState
from autotune.jobs.spec import JobSpec
from autotune.search.probing import obtain_probes
from autotune.store.open import open_store
from search_spaces.errors import MapError
from workers.device.processor import this_processor
from workers.measurement import Environment
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes
from workers.tasks import build_task, load_task_file

COMMAND = str(Path(sys.executable).with_name("autotune"))
TASK_FILE = str(Path(__file__).parents[1] / "data" / "fragile_task.py")
INTEGERS = ("int8_static", "int8_dynamic", "int8_dynamic_per_token", "int8_weight_only", "int4_weight_only")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job()))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run the command in a folder of its own."""
    return functools.partial(invoke, folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the job after it has run, and what was printed meanwhile."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "job.yaml").write_text(yaml.safe_dump(job()))
    return folder, invoke(folder, "run", "job.yaml", "--task-file", TASK_FILE)


@pytest.fixture
def shown(ran: tuple[Path, subprocess.CompletedProcess[str]], folder: Path) -> str:
    """What running the job printed; the folder of ``run`` becomes a copy of the one it ran in."""
    original, done = ran
    shutil.copytree(original, folder, dirs_exist_ok=True)
    return done.stdout


def invoke(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, and check how it ends."""
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


def test_from_job_file_to_verified_map(run: Run, folder: Path, shown: str) -> None:
    assert "Pareto front of small" in shown
    assert "uniform s8" in shown
    assert max(map(len, shown.splitlines())) <= 80

    front = data_of(run("front", "last", "--json"))
    assert front["job"]["state"] == "finished"
    assert front["job"]["trials"] == 12
    first, *uniform = [trial["label"] for trial in front["baselines"]]
    assert first == "fp32"
    assert set(uniform) - {"uniform bf16"} == {f"uniform {choice}" for choice in ("fp16", *INTEGERS)}
    assert ("uniform bf16" in uniform) == this_processor().has_bf16
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
    assert (verified["holds"], verified["inconclusive"]) == (True, False)
    assert {check["metric"] for check in verified["checks"]} == {"accuracy", "weight_memory_mib", "latency_ratio"}
    assert 0.0 < verified["held_out"]["accuracy"] <= 1.0

    assert data_of(run("jobs", "--json"))["jobs"][0]["name"] == "small"
    run("jobs")
    assert "null" not in run("show", "last").stdout
    run("show", "last", "0")


@pytest.mark.usefixtures("shown")
def test_exported_map_applies_in_python(run: Run, folder: Path) -> None:
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


@pytest.mark.usefixtures("shown")
def test_tampered_map_does_not_verify(run: Run, folder: Path) -> None:
    run("export", "last", "--pick", "smallest")
    path = folder / "map.json"
    document = json.loads(path.read_text())
    document["promised"]["accuracy"]["value"] -= 0.1
    path.write_text(json.dumps(document))
    done = run("verify", "map.json", "--task-file", TASK_FILE, "--tolerance", "20", code=5)
    assert "BROKEN" in done.stdout


def test_killed_driver_loses_no_finished_trial_and_the_job_goes_on(run: Run, folder: Path) -> None:
    # Passes enough that the driver is caught in the middle.
    slow = {"repeats": 2000, "final_repeats": 2000, "warmup_s": 0.0, "threads": 1}
    (folder / "job.yaml").write_text(yaml.safe_dump(job(search={"trials": 24, "seed": 1}, measurement=slow)))
    process = subprocess.Popen(
        [COMMAND, "run", "job.yaml", "--task-file", TASK_FILE],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"sqlite:///{folder}/autotune.db"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        if (folder / "autotune.db").exists() and count(url) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(url)
    assert 8 <= len(before) < 24

    run("resume", "last", "--task-file", TASK_FILE)
    after = trials(url)
    assert [trial.number for trial in after] == list(range(len(after)))
    assert searched(after) == 24
    assert after[: len(before)] == before
    assert len({trial.key for trial in after}) == 24
    assert data_of(run("show", "last", "--json"))["events"][-1]["kind"] == "finished"


@pytest.mark.parametrize(
    ("pool", "stage", "number"),
    [
        ("inline", "Calibrating", signal.SIGINT),
        ("ray", "Probing", signal.SIGINT),
        ("inline", "Measuring", signal.SIGINT),
        ("inline", "Measuring", signal.SIGTERM),
        ("ray", "Probing", signal.SIGTERM),
    ],
)
def test_a_job_that_waits_says_for_what_and_stops_at_once(
    run: Run, folder: Path, pool: str, stage: str, number: signal.Signals
) -> None:
    slow = {"name": "fragile", "parameters": {"trouble": "slow"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job(task=slow, workers={"pool": pool})))
    process = subprocess.Popen(
        [COMMAND, "run", "job.yaml", "--task-file", TASK_FILE],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen, deadline = "", time.monotonic() + 120
    while not seen.startswith(stage) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        seen = told(f"sqlite:///{folder}/autotune.db") or seen
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert seen.startswith(stage)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert re.search(rf"^{stage}", printed, re.MULTILINE)
    assert "continue with: autotune resume" in printed
    shown = data_of(run("show", "last", "--json"))["job"]
    assert (shown["state"], shown["stage"]) == ("paused", None)


def told(url: str) -> str:
    """The stage of the only job, or nothing."""
    try:
        store = open_store(url, read_only=True)
    except Exception:  # the driver may be making the database just now
        return ""
    with closing(store):
        return "".join(stage_text(stage) for stage in store.stages().values())


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
    assert "No map satisfies the constraints. Nearest is trial" in " ".join(shown.stdout.split())
    done = run("export", "last", code=4)
    assert "Nearest is trial" in done.stderr
    assert "latency_p50_ms is " in done.stderr


def test_memory_limit_rules_maps_out_before_they_run(run: Run, folder: Path) -> None:
    limits = {"weight_memory_mib": {"max": 0.004}}
    (folder / "job.yaml").write_text(
        yaml.safe_dump(job(constraints=limits, search={"trials": 20, "sampler": "random"}))
    )
    front = data_of(run("run", "job.yaml", "--task-file", TASK_FILE, "--json"))
    assert all(trial["figures"]["weight_memory_mib"]["value"] <= 0.004 for trial in front["front"])
    recorded = trials(f"sqlite:///{folder}/autotune.db")
    ruled_out = [trial for trial in recorded[6:20] if trial.state is TrialState.REJECTED]
    assert ruled_out
    assert all(set(trial.figures) == {"weight_memory_mib"} for trial in ruled_out)


def test_sensitivities_of_a_job_are_shown(run: Run, folder: Path) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump(job(search={"trials": 8, "choices": ["fp32", "int8_dynamic"]})))
    run("run", "job.yaml", "--task-file", TASK_FILE)
    shown = run("sensitivity", "last")
    assert re.search(r"Estimated by a gradient sketch from 64 samples in \d+\.\d s\.", shown.stderr)
    data = data_of(run("sensitivity", "small", "--json"))
    assert (data["job"]["name"], data["estimator"], data["samples"]) == ("small", "gradient", 64)
    worst = [layer["choices"]["int8_dynamic"]["divergence"] for layer in data["layers"]]
    assert worst == sorted(worst, reverse=True)
    assert 0.0 < worst[-1] < worst[0] < 0.1
    for layer in data["layers"]:
        (choice,) = layer["choices"].values()
        assert choice["change_ms"] == choice["latency_ms"] - layer["latency_ms"]
        row = rf"^ {layer['layer']} +{choice['divergence']:.1e} *\n   fp32 {layer['latency_ms']:.3f} ms +"
        assert re.search(row + re.escape(f"{choice['change_ms']:+.3f}"), shown.stdout, re.MULTILINE)


MANY_CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only", "fp8_static")
BLOCK = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "output.dense")
MANY_LAYERS = [f"text_model.encoder.layer.{block}.{layer}" for block in range(8) for layer in BLOCK]


class ProbingPool:
    """Forty layers by six choices: later layers are worse except with bf16, and the last one is much slower."""

    def probe(self, budget_s: float, backend: str) -> Probes:
        layers = tuple(
            LayerProbe(
                layer=name,
                choice=choice,
                divergence=(40 - position) * 1e-9 if choice == "bf16" else position * column * 1.01e-7,
                latency_ms=(1.0 if name != MANY_LAYERS[-1] else 1234.5) / (1 + column),
            )
            for position, name in enumerate(MANY_LAYERS)
            for column, choice in enumerate(MANY_CHOICES)
            if (position, choice) != (39, "bf16")
        )
        return Probes(layers=layers, pass_ms=50.0, estimator=Estimator.LOCAL, samples=12, seconds=3.25)


def record_job(folder: Path, *, probed: bool) -> str:
    """Record a job that was submitted, and perhaps probed, by another process; return its id."""
    store = open_store(f"sqlite:///{folder}/autotune.db")
    record = submit(store, JobSpec.parse(job(search={"trials": 5, "choices": MANY_CHOICES})), served=False)
    if probed:
        environment = Environment(hardware="cpu", backend="x86", threads=1, load=0.0, versions={})
        description = ModelDescription(
            fingerprint="f", layers=(), refusals={}, layer_bytes={}, other_bytes=0, environment=environment,
            calibration=Calibration(ranges={}, samples=1, seconds=0.1),
        )  # fmt: skip
        record = store.change_job(record.id, with_fields(0, description=description))
        obtain_probes(store, record, ProbingPool(), Silent())  # type: ignore[arg-type]
    store.close()
    return record.id


def test_sensitivities_of_many_layers_fit_the_terminal(run: Run, folder: Path) -> None:
    record_job(folder, probed=True)
    done = run("sensitivity", "last")
    assert "the layers' local errors, scaled to the uniform maps, from 12 samples in 3.2 s." in done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(i for i, line in enumerate(lines) if "──" in line) + 1
    rows = [line.split() for line in lines[first : first + 2 * len(MANY_LAYERS)]]
    names = [name for name, *_ in rows[::2]]
    assert len(set(names)) == len(MANY_LAYERS), "two layers look the same"
    assert [name.split(".")[-1] for name in names] == [name.split(".")[-1] for name in reversed(MANY_LAYERS)]
    assert rows[0][1:] == ["7.9e-06", "1.2e-05", "1.6e-05", "2.0e-05", "2.4e-05"]
    assert rows[1] == ["fp32", "1234.500", "ms", "-823", "-926", "-988", "-1029", "-1058"]
    assert rows[2][1:] == ["2.0e-09", "7.7e-06", "1.2e-05", "1.5e-05", "1.9e-05", "2.3e-05"]
    assert rows[3][3:] == ["-0.500", "-0.667", "-0.750", "-0.800", "-0.833", "-0.857"]


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("encoder.layer.0.output.dense", 28, "encoder.layer.0.output.dense"),
        ("encoder.layer.0.attention.output.dense", 34, "encoder.….0.attention.output.dense"),
        ("encoder.layer.0.attention.output.dense", 33, "encoder.….0.….output.dense"),
        ("encoder.layer.0.attention.output.dense", 25, "….0.….output.dense"),
        ("encoder.layer.0.attention.output.dense", 17, "….0.….dense"),
        ("text_model.encoder.layers.11.self_attn.q_proj", 36, "text_model.….11.self_attn.q_proj"),
        ("a_very_long_name_without_parts", 11, "a_ver…parts"),
        ("first_part_of_it.3.last_part_of_it", 12, "….3.la…of_it"),
    ],
)
def test_layer_names_lose_their_middle_but_not_their_numbers(name: str, width: int, expected: str) -> None:
    assert shortened(name, width) == expected
    assert len(expected) <= width


def test_job_without_sensitivities_says_why(run: Run, folder: Path) -> None:
    number = record_job(folder, probed=False)
    done = run("sensitivity", "last", code=8)
    assert f"has not probed its layers; wait if it is running, otherwise run: autotune resume {number}" in done.stderr

    (folder / "job.yaml").write_text(yaml.safe_dump(job(search={"trials": 3, "sampler": "nsga2"})))
    run("run", "job.yaml", "--task-file", TASK_FILE)
    done = run("sensitivity", "last", code=8)
    assert "its sampler is nsga2, which probes no layers; run a job with search.sampler: sensitivity" in done.stderr

    troubled = {"name": "fragile", "parameters": {"trouble": "raise"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job(task=troubled, search={"trials": 2})))
    run("run", "job.yaml", "--task-file", TASK_FILE)
    done = run("sensitivity", "last", code=8)
    assert "the uniform maps used up its budget before its layers were probed" in done.stderr

    (folder / "job.yaml").write_text(yaml.safe_dump(job(task=troubled, search={"trials": 20})))
    run("run", "job.yaml", "--task-file", TASK_FILE)
    done = run("sensitivity", "last", "--json", code=8)
    error = json.loads(done.stderr)["error"]
    assert error["kind"] == "ConflictError"
    assert "the first layer is in trouble; fix that and run: autotune resume" in error["message"]


WRONG = [
    (["run", "missing.yaml"], 3, "there is no job file"),
    (["run", "job.yaml"], 2, "Register your own with --task-file"),
    (["run", "job.yaml", "--task-file", "gone.py"], 3, "gone.py'; --task-file takes a path from this folder"),
    (["show", "last"], 7, "there is no database"),
    (["export", "last", "-d", "mysql://somewhere/db"], 7, "a database URL must be sqlite:///FILE or postgresql://"),
    (["verify", "missing.json"], 3, "there is no map file"),
    (["verify", "job.yaml"], 5, "is not a quantization map"),
    (["dashboard", "--address", "0.0.0.0"], 2, "listens on loopback only"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_errors_say_what_to_do(run: Run, arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments, code=code)
    assert done.stderr.startswith("Error: ") or "Error: " in done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"choices": ["fp32", "fp8_dynamic"]},
            "none of the model's 2 layers may take anything but fp32: 0: fp8_dynamic",
        ),
        ({"choices": ["fp32"]}, "allow other choices in search.choices or search.layers"),
    ],
)
def test_nothing_to_search_says_why(run: Run, folder: Path, search: dict[str, Any], message: str) -> None:
    (folder / "job.yaml").write_text(yaml.safe_dump(job(search=search)))
    done = run("run", "job.yaml", "--task-file", TASK_FILE, code=2)
    assert message in done.stderr


def test_pinned_map_is_measured(run: Run, folder: Path) -> None:
    rules = [{"pattern": "*", "pin": "int8_dynamic"}]
    (folder / "job.yaml").write_text(yaml.safe_dump(job(search={"layers": rules})))
    run("run", "job.yaml", "--task-file", TASK_FILE)
    trial = data_of(run("show", "last", "1", "--json"))["trial"]
    assert set(trial["choices"].values()) == {"int8_dynamic"}


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
    done = run("init", "own.yaml", "--task", "fragile", "--task-file", TASK_FILE)
    assert f"autotune run own.yaml --task-file {TASK_FILE}" in " ".join(done.stderr.split())
    done = run("run", "new.yaml", "--trials", "0", code=2)
    assert "--trials" in done.stderr


def test_tasks_and_doctor(run: Run) -> None:
    names = [task["name"] for task in data_of(run("tasks", "--json"))["tasks"]]
    assert {"minilm-lee", "digits-cnn", "digits-vit"} <= set(names)
    run("tasks")
    report = data_of(run("doctor", "--json"))
    assert report["ok"], report
    speeds = {speed["choice"]: speed for speed in report["choices"]}
    assert {"bf16", "fp16", "int8_static", "int8_weight_only", "int4_weight_only"} <= set(speeds)
    assert all(speed["refused"] or set(speed["ratios"]) == {"1", "128"} for speed in speeds.values())
    text = run("doctor").stdout
    assert this_processor().kind.partition("(")[2].partition(",")[0] in text
    assert max(map(len, text.splitlines())) <= 80
    for speed in speeds.values():
        assert speed["choice"] in text
