"""``autotune.tune`` from a model in hand to a quantized one."""

import functools
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autotune
from autotune.client.connect import connect
from autotune.errors import JobSpecError, NoFeasibleMapError, NotFoundError
from autotune.jobs.records import JobState
from autotune.tuning.result import Result
from workers.errors import TaskError

JOB: Mapping[str, Any] = {
    "search": {"choices": ["fp32", "int8_static", "int8_weight_only"], "trials": 6},
    "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
}


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with labels that full precision finds."""
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return inputs, model()(inputs).argmax(dim=1)


def top1(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(dim=1) == labels).double().mean()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tune') / 'jobs.db'}"


@pytest.fixture(scope="module")
def result(database: str) -> Result:
    inputs, labels = samples()
    found: Result = autotune.tune(
        model(), inputs, metric=top1, labels=labels, limits={"accuracy_drop": 0.5}, budget=60, database=database,
        job=JOB,
    )  # fmt: skip
    return found


def test_runtimes_share_the_front_of_a_live_model(database: str) -> None:
    inputs, labels = samples()
    found: Result = autotune.tune(
        model(), inputs, metric=top1, labels=labels, backend=["cpu", "onnxruntime"], budget=60, database=database,
        job=JOB,
    )  # fmt: skip
    assert {trial.backend for trial in found.trials} == {"", "onnxruntime"}
    assert {trial.label for trial in found.trials if trial.backend == "onnxruntime"} >= {"fp32", "uniform int8_static"}


def test_maps_of_a_live_model_can_be_recovered(result: Result) -> None:
    parent = next(trial for trial in result.trials if trial.label == "uniform int8_weight_only")
    better = result.recover(parent.number, epochs=20)
    found = [trial for trial in better.trials if trial.parent is not None]  # of its final measurement, if there is one
    assert len(better.trials) == len(result.trials) + len(found)
    for trial in found:
        assert trial.choices == parent.choices
        recovered, plain = (better[number].apply(model()) for number in (trial.number, parent.number))
        inputs, _ = samples()
        assert not torch.equal(recovered(inputs), plain(inputs))
    with pytest.raises(NotFoundError, match="no trial 99"):
        result.recover(99)
    with pytest.raises(JobSpecError, match="epochs"):
        result.recover(epochs=0)


def test_the_job_is_in_the_database(result: Result, database: str) -> None:
    client = connect(database, read_only=True)
    job = client.find("last")
    client.close()
    assert (job.id, job.state, job.name) == (result.job.id, JobState.FINISHED, "Sequential")
    assert job.spec.workers.pool == "inline"


def test_the_result_shows_recommendation_front_and_baselines_in_this_order(result: Result) -> None:
    text, page = repr(result), result._repr_html_()
    for shown in (text, page):
        places = [shown.find(part) for part in ("Recommended", "Pareto front", "Baselines", "split off as held-out")]
        assert -1 not in places
        assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80


def test_maps_are_found_by_name_and_number(result: Result) -> None:
    assert result.fastest.trial.figures["latency_p50_ms"].value == min(
        trial.figures["latency_p50_ms"].value for trial in (*(m.trial for m in result), result.fastest.trial)
    )
    assert result.smallest.figures["weight_memory_mib"] <= result.best.figures["weight_memory_mib"]
    assert result.most_accurate.figures["accuracy"] == 1.0
    assert set(result[0].choices.values()) == {"fp32"}
    with pytest.raises(NotFoundError, match="no trial 999"):
        result[999]


def test_a_map_is_applied_to_a_copy_and_saved(result: Result, tmp_path: Path) -> None:
    full, (inputs, _) = model(), samples()
    tuned = result.smallest
    assert set(tuned.choices.values()) == {"int8_weight_only"}
    quantized = tuned.apply(full)
    again = autotune.load_map(tuned.save(tmp_path / "map.json")).apply(model())
    built = tuned.apply()
    assert isinstance(full[0], nn.Linear)
    assert type(quantized[0]) is not nn.Linear
    with torch.inference_mode():
        outputs = quantized(inputs)
        assert torch.equal(outputs, again(inputs))
        assert torch.equal(outputs, built(inputs))
        assert not torch.equal(outputs, full(inputs))


def test_a_map_is_verified_in_this_process(result: Result) -> None:
    report = result.smallest.verify()
    checks = {check.metric: check for check in report.checks}
    assert report.held_out is not None
    assert checks["accuracy"].holds
    assert checks["weight_memory_mib"].measured.value == result.smallest.figures["weight_memory_mib"]
    assert repr(report).startswith(report.verdict)
    accuracy = f"{result.smallest.figures['accuracy']:.4f}"
    assert f"  Accuracy: {accuracy}, promised {accuracy}, holds" in repr(report)


def test_the_export_of_a_live_model_is_verified_in_this_process_and_no_other(result: Result, tmp_path: Path) -> None:
    folder, threads = result.smallest.export("onnxruntime", tmp_path / "deploy"), torch.get_num_threads()
    report = result.smallest.verify_export(folder)
    checks = {check.name: check for check in report.checks}
    assert checks["divergence_from_backend"].holds
    assert checks["accuracy"].measured == pytest.approx(result.smallest.figures["accuracy"], abs=0.02)
    assert checks["latency_ratio"].measured > 0
    assert checks["full_precision_p50_ms"].expected == pytest.approx(
        result.smallest.figures["latency_p50_ms"] / result.smallest.figures["latency_ratio"]
    )
    assert report.verdict in repr(report)
    accuracy = checks["accuracy"]
    assert f"  accuracy: {accuracy.measured:.4g}, expected {accuracy.expected:.4g}, limit" in repr(report)
    assert torch.get_num_threads() == threads
    assert json.loads((folder / "verification.json").read_text())["holds"] == report.holds
    for path in (folder, result.smallest.save(tmp_path / "map.json")):
        command = [str(Path(sys.executable).with_name("autotune")), "verify", str(path)]
        elsewhere = subprocess.run(command, capture_output=True, text=True, check=False)
        assert elsewhere.returncode == 2
        assert "with verify() and verify_export(folder) of the map" in elsewhere.stderr


def test_trials_are_a_frame_and_a_chart(result: Result, tmp_path: Path) -> None:
    frame = result.to_frame()
    assert list(frame.index) == [trial.number for trial in result.trials]
    assert frame.loc[0, "layer:0"] == "fp32"
    assert "<svg" in result.plot().save(tmp_path / "front.html").read_text()


def test_the_dashboard_of_the_job_is_served_until_it_is_stopped(result: Result) -> None:
    served = result.dashboard()
    try:
        assert served.url.endswith(f"/front?job={result.job.id}")
        assert served.url in repr(served)
        assert served.url in served._repr_html_()
        with urllib.request.urlopen(served.url) as answer:
            assert answer.status == 200
    finally:
        served.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(served.url)


def test_a_loader_of_pairs_and_a_limit_that_nothing_meets(database: str) -> None:
    found = autotune.tune(
        model(), DataLoader(TensorDataset(*samples()), batch_size=10), metric=top1,
        limits={"weight_memory_mib": 0.001}, budget=60, database=database, job=JOB,
    )  # fmt: skip
    assert "No map satisfies the constraints" in repr(found)
    assert "No map satisfies the constraints" in found._repr_html_()
    assert "<svg" in found.plot()._repr_html_()
    with pytest.raises(NoFeasibleMapError, match="weight_memory_mib"):
        _ = found.best


INTERRUPTED = """
import signal, sys
sys.path.insert(0, {folder!r})
import test_tune
import autotune

def metric(outputs, labels):
    global calls
    calls += 1
    if calls == 4:  # full precision, and a map after it
        signal.raise_signal(signal.SIGINT)
    return test_tune.top1(outputs, labels)

calls = 0
inputs, labels = test_tune.samples()
result = autotune.tune(
    test_tune.model(), inputs, metric=metric, labels=labels, database={database!r}, job=test_tune.JOB
)
print(result.job.state.value, len(result.trials), result[0].number)
"""


def test_an_interrupted_search_keeps_what_was_measured(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    script.write_text(INTERRUPTED.format(folder=str(Path(__file__).parent), database=database))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    state, trials, first = done.stdout.split()
    assert (state, first) == ("paused", "0")
    assert 1 <= int(trials) < 6
    assert "Stopped. The result holds every finished trial." in done.stderr


def test_the_snippet_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(__file__).parents[2] / "README.md"
    snippet = re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert 'budget="5 min"' in snippet
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOTUNE_DATABASE", raising=False)
    # The same call, with fewer trials than fit into five minutes.
    monkeypatch.setattr(autotune, "tune", functools.partial(autotune.tune, job=JOB), raising=False)
    inputs, labels = samples()
    names: dict[str, Any] = {"model": model(), "batches": inputs, "labels": labels}
    exec(snippet, names)
    assert isinstance(names["quantized"], nn.Module)
    assert names["quantized"](inputs).shape == (200, 4)
    assert (tmp_path / "autotune.db").is_file()


class Net(nn.Module):
    """A model that Ray's workers know only from what the driver sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = model()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layers(values)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cluster(ray_token: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", ray_token)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_workers_on_ray_get_the_model_and_the_database_does_not(tmp_path: Path) -> None:
    inputs, labels = samples()
    database = tmp_path / "jobs.db"
    found = autotune.tune(
        Net(), inputs, labels=labels, budget=120, workers=2, database=f"sqlite:///{database}",
        job={**JOB, "search": {"choices": ["fp32", "int8_weight_only"], "trials": 3}, "workers": {"cpus": 1}},
    )  # fmt: skip
    assert (found.job.state, found.job.spec.workers.pool, found.job.spec.workers.count) == (JobState.FINISHED, "ray", 2)
    assert all(trial.worker.startswith("ray:") for trial in found.trials)
    assert found.smallest.apply(Net())(inputs).shape == (200, 4)
    weights = next(Net().parameters()).detach().numpy().tobytes()
    assert not any(weights in file.read_bytes() for file in tmp_path.glob("jobs.db*"))


@pytest.mark.usefixtures("cluster")
def test_a_model_that_ray_cannot_send_is_refused(tmp_path: Path) -> None:
    lock = threading.Lock()

    def metric(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with lock:
            return top1(outputs, labels)

    inputs, labels = samples()
    with pytest.raises(TaskError, match="cannot be sent to Ray workers"):
        autotune.tune(
            model(), inputs, metric=metric, labels=labels, workers=1, database=f"sqlite:///{tmp_path / 'jobs.db'}"
        )
