"""The job of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

import autotune
from autotune.jobs.spec import JobSpec
from autotune.tuning.checkpoint import checkpoint_job
from autotune.tuning.job import Settings
from workers.errors import TaskError


def checkpoint(folder: Path, architecture: str) -> str:
    (folder / "some-model").mkdir()
    (folder / "some-model" / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    return str(folder / "some-model")


def test_the_task_its_data_and_what_its_users_wait_for_are_known(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    place = checkpoint(tmp_path, "LlamaForCausalLM")
    spec = checkpoint_job(place, str(tmp_path / "text.txt"), Settings(limits={"accuracy_drop": "1%"}, budget="5min"))
    assert (spec.name, spec.task.name) == ("some-model", "causal-lm")
    assert spec.task.parameters == {"checkpoint": place, "text": str(tmp_path / "text.txt")}
    assert spec.objectives == ("prefill_latency_p50_ms", "divergence")
    assert [str(limit) for limit in spec.constraints.constraints()] == ["accuracy_drop <= 0.01"]


def test_parameters_of_the_task_may_be_added(tmp_path: Path) -> None:
    job = {"task": {"parameters": {"windows": 8}}}
    spec = checkpoint_job(checkpoint(tmp_path, "LlamaForCausalLM"), None, Settings(job=job))
    assert spec.task.parameters.keys() == {"checkpoint", "windows"}


@pytest.mark.parametrize(
    ("mib", "budget", "windows"),
    [(0, "5min", None), (250, "5min", 16), (250, "10min", 32), (250, "1h", None), (250, None, None), (8000, "1h", 16)],
)
def test_a_short_job_of_a_large_language_model_has_fewer_windows(
    mib: int, budget: str | None, windows: int | None, tmp_path: Path
) -> None:
    place = checkpoint(tmp_path, "LlamaForCausalLM")
    with Path(place, "model.safetensors").open("wb") as file:
        file.truncate(mib << 20)  # takes no room on the disk
    spec = checkpoint_job(place, None, Settings(budget=budget))
    assert spec.task.parameters.get("windows") == windows
    ours = Settings(budget=budget, job={"task": {"parameters": {"windows": 5}}})
    assert checkpoint_job(place, None, ours).task.parameters["windows"] == 5


def test_only_language_models_have_windows(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, "UNet2DModel")
    with Path(place, "model.safetensors").open("wb") as file:
        file.truncate(8000 << 20)
    assert "windows" not in checkpoint_job(place, None, Settings(budget="1min")).task.parameters


def test_the_keys_that_were_set_are_a_job_file(tmp_path: Path) -> None:
    spec = checkpoint_job(checkpoint(tmp_path, "LlamaForCausalLM"), None, Settings(budget=60))
    short = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert "calibration" not in short
    assert JobSpec.parse(short) == spec


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Llama-3.2-1B", "Llama-3.2-1B"),
        ("model-v1.5.gguf", "model-v1.5"),
        (".", "here"),
        ("../here/", "here"),
    ],
)
def test_a_job_is_named_after_its_checkpoint(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    if path.endswith(".gguf"):
        Path(path).write_bytes(b"GGUF")
    else:
        Path(path).mkdir(exist_ok=True)
        Path(path, "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert checkpoint_job(path, None, Settings()).name == name


@pytest.mark.parametrize(
    ("architecture", "data", "complaint"),
    [
        ("ResNetForImageClassification", None, "image-classification, which needs data: a folder of images"),
        ("WhisperForConditionalGeneration", None, "which needs data: a folder of wav files"),
        ("LlamaForCausalLM", "nowhere.txt", "there is no file or folder 'nowhere.txt'; .* takes a file of text"),
        ("UNet2DModel", "nowhere.txt", "which takes no data, but got 'nowhere.txt'"),
    ],
)
def test_data_that_do_not_fit_are_refused(architecture: str, data: str | None, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=complaint):
        checkpoint_job(checkpoint(tmp_path, architecture), data, Settings())


@pytest.mark.parametrize("given", [{"labels": torch.ones(3)}, {"metric": len}, {"batches": torch.ones(3)}])
def test_a_checkpoint_takes_no_inputs_of_ones_own(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f"but got {next(iter(given))}; pass the path of its data only"):
        autotune.tune(checkpoint(tmp_path, "LlamaForCausalLM"), **given)
