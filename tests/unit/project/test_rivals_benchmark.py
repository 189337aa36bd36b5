"""The comparison with other tools, without the tools and the jobs."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autotune.jobs.spec import JobSpec
from workers.measurement import LatencySamples
from workers.timing.latency import Contender

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    spec = {
        "name": "small", "task": {"name": "digits-cnn"}, "constraints": {"accuracy_drop": {"max": "1%"}},
        "measurement": {"repeats": 20, "warmup_s": 0.0},
    }  # fmt: skip
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path


@pytest.fixture
def subject(job_file: Path) -> Any:
    from benchmarks.rivals.subject import load_subject

    return load_subject(job_file)


def measured(name: str, ratio: float, drop: float, **changes: Any) -> Mapping[str, Any]:
    return {
        "name": name, "ratio": {"value": ratio, "low": 0.8 * ratio, "high": 1.25 * ratio}, "latency_ms": 10.0 * ratio,
        "accuracy_drop": {"evaluation": drop, "held_out": -drop}, "divergence": 2e-3, "mib": 22.0, "loaded_s": 1.5,
    } | changes  # fmt: skip


def test_rivals_that_keep_the_limit_come_first_and_the_fastest_of_them_at_the_top() -> None:
    from benchmarks.rivals.table import table

    rows = table(
        [
            measured("slow", 1.0, 0.0),
            measured("fastest, but loses too much", 0.2, 0.011),
            measured("fast", 0.5, 0.01),
            {"name": "failed", "error": "ValueError: no"},
        ],
        {"fast": 12.4},
        0.01,
    ).splitlines()
    assert [line.split(" | ")[0] for line in rows[2:]] == ["| fast", "| slow", "| fastest, but loses too much"]
    assert rows[2] == "| fast | 2.00x | 1.60 to 2.50 | yes | +1.00 % | -1.00 % | 2.0e-03 | 22.0 | 12 s | 2 s |"
    assert "| no |" in rows[4]


def test_a_record_keeps_what_earlier_runs_made_and_forgets_what_changed(tmp_path: Path) -> None:
    from benchmarks.rivals.run import Record

    path = tmp_path / "made.json"
    first = Record(path)
    first.made("a", 1.5)
    first.failed("b", "no")
    first.failed("c", "no")
    second = Record(path)
    second.failed("a", "not ready after 5 s")
    second.made("b", 2.5)
    third = Record(path)
    assert (third.seconds, third.refused) == ({"b": 2.5}, {"a": "not ready after 5 s", "c": "no"})


def test_the_reason_in_a_log_is_its_last_exception_whatever_is_printed_after_it() -> None:
    from benchmarks.rivals.run import reason_of

    log = "ValueError: first\nTraceback\n  File x\ntorch._dynamo.exc.UserError: second\nSee the guide.\n"
    assert reason_of(log) == "torch._dynamo.exc.UserError: second"
    assert reason_of("Killed\n\n") == "Killed"
    assert reason_of("") == ""


def test_failures_name_those_that_made_nothing_and_those_that_do_not_run() -> None:
    from benchmarks.rivals.table import failures

    found = failures([measured("fast", 0.5, 0.0), {"name": "b", "error": "ValueError: no"}], {"a": "ImportError: x"})
    assert found == "- a: ImportError: x\n- b: ValueError: no"
    assert failures([measured("fast", 0.5, 0.0)], {}) == ""


def test_the_environment_lists_each_library_once() -> None:
    from benchmarks.rivals.table import environment

    versions = [{"torch": "2.13", "onnxruntime": "1.32"}, {"torch": "2.13"}, {}]
    assert environment(versions, "AMD", 2, 0.25) == "AMD, 2 threads, load 0.2; onnxruntime 1.32, torch 2.13."


def test_every_rival_has_a_folder_and_a_recipe_of_its_own() -> None:
    from benchmarks.rivals import onnx_recipes, torch_recipes
    from benchmarks.rivals.peers import PEERS, write_onnx, write_state

    assert len({peer.name for peer in PEERS}) == len({peer.folder for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert bool(peer.packages) == bool(peer.environment)
        if peer.write is write_onnx:
            assert peer.recipe in onnx_recipes.RECIPES
        if peer.write is write_state:
            assert peer.recipe in torch_recipes.RECIPES
            assert peer.options == {"recipe": peer.recipe}


@pytest.mark.parametrize("model", ["minilm", "efficientnet", "gemma", "whisper-tiny"])
def test_our_job_searches_every_backend_for_as_long_as_the_others_may_take(model: str) -> None:
    from benchmarks.rivals.run import job
    from benchmarks.rivals.subject import most_drop

    spec = JobSpec.parse(job(model, 120.0))
    assert (spec.backend, spec.search.time_limit_s, most_drop(spec)) == ("all", 120.0, 0.01)
    assert spec.objectives[0] == "latency_p50_ms"


def test_an_environment_inherits_ours_and_runs_our_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.rivals import environments

    installed: list[list[str]] = []

    def pip(command: list[str], check: bool) -> "subprocess.CompletedProcess[str]":
        installed.append(command)
        return subprocess.CompletedProcess(command, 0)

    with monkeypatch.context() as patched:
        patched.setattr(environments.subprocess, "run", pip)
        interpreter = environments.python("some", ["some-package"], tmp_path)
        assert environments.python("some", ["some-package"], tmp_path) == interpreter
    (command,) = installed
    assert command[0] == str(interpreter)
    assert "some-package" in command
    assert f"torch=={torch.__version__}" in command
    found = subprocess.run(
        [interpreter, "-c", "import onnx, sys; print(sys.prefix, onnx.__file__)"], capture_output=True, text=True
    )
    prefix, file = found.stdout.split()
    assert Path(prefix) == tmp_path / "some"
    assert Path(file).is_relative_to(Path(sys.prefix))
    assert environments.python("", (), tmp_path) == Path(sys.executable)


def test_an_environment_without_its_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.rivals import environments

    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(environments.subprocess, "run", lambda command, check: failed)
    for _ in range(2):  # the second call must not take the first one's folder for complete
        with pytest.raises(SystemExit, match="pip cannot install some-package"):
            environments.python("some", ["some-package"], tmp_path)


def test_series_of_one_contender_are_joined_in_order() -> None:
    from benchmarks.rivals.measure import joined

    parts = [
        LatencySamples(batch_size=4, candidate_ms=np.array([n, n + 1.0]), reference_ms=np.array([10.0 * n]))
        for n in (1.0, 3.0)
    ]
    found = joined(parts)
    assert found.batch_size == 4
    np.testing.assert_array_equal(found.candidate_ms, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(found.reference_ms, [10.0, 30.0])


def test_all_take_turns_and_every_other_lap_goes_backwards(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.rivals import measure

    order: list[int] = []

    def timed(candidate: Contender, reference: Contender, **settings: Any) -> LatencySamples:
        order.append(int(str(candidate.run())))
        return LatencySamples(batch_size=1, candidate_ms=np.ones(2), reference_ms=np.ones(2))

    monkeypatch.setattr(measure.latency, "measure", timed)

    def contender(number: int) -> Contender:
        run: Callable[[], object] = lambda: number  # noqa: E731
        return Contender(install=lambda: None, run=run)

    found = measure.timed_in_turns(subject, [contender(0), contender(1), contender(2)], 3)
    assert order == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [len(samples.candidate_ms) for samples in found] == [6, 6, 6]


# PyTorch's export copies a class of its own that it has deprecated.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["PyTorch quantize_dynamic", "ONNX Runtime fp32", "ONNX Runtime dynamic, per channel"])
def test_an_artefact_is_made_loaded_and_measured(subject: Any, tmp_path: Path, name: str) -> None:
    from benchmarks.rivals.artefacts import Artefact
    from benchmarks.rivals.measure import figures, loaded_or_refused
    from benchmarks.rivals.peers import PEERS

    peer = next(peer for peer in PEERS if peer.name == name)
    peer.make(subject, tmp_path).write(tmp_path)
    artefact = Artefact.read(tmp_path)
    assert artefact.bytes > 0
    loaded = loaded_or_refused(artefact, tmp_path, subject)
    assert loaded is not None
    with torch.no_grad():
        (found,) = figures(subject, [loaded], 1)
    assert (found.name, found.mib) == (name, artefact.bytes / 2**20)
    assert found.ratio.value > 0.0
    assert found.accuracy_drop.keys() >= {"evaluation", "held_out"}
    assert abs(found.accuracy_drop["evaluation"]) < 0.05
    assert 0.0 <= found.divergence < 0.1


def test_what_does_not_load_is_printed_with_its_reason(
    subject: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.rivals.artefacts import Artefact, Kind
    from benchmarks.rivals.measure import loaded_or_refused

    artefact = Artefact(name="absent", kind=Kind.ONNX, file="model.onnx", bytes=1)
    assert loaded_or_refused(artefact, tmp_path, subject) is None
    printed = json.loads(capsys.readouterr().out)
    assert printed["name"] == "absent"
    assert printed["error"].startswith("BackendError: ONNX Runtime")


def test_calls_have_the_tensors_of_the_data(subject: Any) -> None:
    calls = subject.calibration()
    assert len(calls) == len(subject.task.calibration())
    assert all(len(tensors) == len(subject.input_names) for tensors in calls)
    with torch.no_grad():
        (outputs,) = subject.flat(*calls[0])
        expected = subject.task.forward(subject.model, subject.task.calibration()[0])
    torch.testing.assert_close(outputs, expected)


def test_a_positional_model_stands_for_the_real_one(subject: Any) -> None:
    from benchmarks.rivals.artefacts import Positional

    stand_in: nn.Module = Positional(subject.flat, subject)
    assert subject.accuracy(stand_in) == subject.accuracy(subject.model)
