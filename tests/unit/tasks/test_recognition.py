"""Tasks of checkpoints, by the architecture in their configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.errors import TaskError
from workers.tasks import task_info
from workers.tasks.recognition import recognized


def folder(path: Path, file: str = "config.json", **configuration: Any) -> str:
    (path / file).write_text(json.dumps(configuration))
    return str(path)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "causal-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("ResNetForImageClassification", "image-classification"),
        ("WhisperForConditionalGeneration", "speech-seq2seq"),
    ],
)
def test_an_architecture_of_transformers_names_its_task(architecture: str, task: str, tmp_path: Path) -> None:
    found = recognized(folder(tmp_path, architectures=[architecture]))
    assert found.task == task
    assert {"checkpoint", found.data} <= set(task_info(task).parameters)


@pytest.mark.parametrize(
    ("file", "name", "task"),
    [
        ("model_index.json", "StableDiffusionPipeline", "text-to-image"),
        ("config.json", "UNet2DConditionModel", "diffusion"),
        ("config.json", "DiTTransformer2DModel", "diffusion"),
    ],
)
def test_a_class_of_diffusers_names_its_task(file: str, name: str, task: str, tmp_path: Path) -> None:
    assert recognized(folder(tmp_path, file, _class_name=name)).task == task


def test_other_forms_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "some-model.gguf").write_bytes(b"GGUF")
    assert recognized(str(tmp_path / "some-model.gguf")).task == "causal-lm"
    assert recognized("torchvision:resnet50").task == "image-classification"
    assert recognized(folder(tmp_path, architecture="mobilenetv3_small_050")).task == "image-classification"


@pytest.mark.parametrize(
    ("configuration", "complaint"),
    [
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "of '.*', T5ForConditionalGeneration; known",
        ),
        ({"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline; known are"),
        ({"model_type": "llama"}, "the architecture of '.*', none; known"),
    ],
)
def test_other_architectures_need_a_task(configuration: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=complaint):
        recognized(folder(tmp_path, **configuration))


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"has neither config\.json nor model_index\.json"):
        recognized(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TaskError, match="cannot read"):
        recognized(str(tmp_path))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of a machine without network; it is laid out as huggingface_hub's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def store(cache: Path, name: str, **files: str) -> None:
    """Put files of a checkpoint into the cache: blobs by their hashes, and a commit with links to them."""
    place, commit = cache / f"models--{name.replace('/', '--')}", "5e" * 20
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for file, content in files.items():
        (place / "blobs" / file).write_text(content)
        (place / "snapshots" / commit / file).symlink_to(Path("../../blobs", file))


def test_a_name_in_the_cache_of_the_hub_is_known_without_network(cache: Path) -> None:
    store(cache, "someone/llama-1.5", **{"config.json": '{"architectures": ["LlamaForCausalLM"]}'})
    store(cache, "someone/sampler", **{"model_index.json": '{"_class_name": "StableDiffusionPipeline"}'})
    store(cache, "someone/llama-GGUF", **{"small.q4.gguf": "GGUF"})
    assert recognized("someone/llama-1.5").task == "causal-lm"
    assert recognized("someone/sampler").task == "text-to-image"
    assert recognized("someone/llama-GGUF/small.q4.gguf").task == "causal-lm"


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "nobody/nothing/some.gguf"])
def test_a_name_that_is_nowhere_is_told_with_the_cache_and_why_the_hub_is_not_asked(name: str, cache: Path) -> None:
    with pytest.raises(TaskError) as told:
        recognized(name)
    assert f"there is no file or folder {name!r}" in str(told.value)
    assert str(cache) in str(told.value)
    assert "the hub is not asked, because HF_HUB_OFFLINE is set" in str(told.value)


def test_a_hub_that_cannot_be_reached_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def unreachable(name: str, file: str, *, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub.cached_file", unreachable)
    with pytest.raises(TaskError, match=f"in the cache '{cache}'; the hub says: We couldn't connect to the hub. Check"):
        recognized("nobody/nothing")
    assert asked.count(False) == 1


@pytest.mark.parametrize(
    "path", ["/nowhere/model", "./model", "a/b/c", "/nowhere/some.gguf", "some.gguf", "models/some.gguf", "~/model"]
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(TaskError, match=f"there is no file or folder '{path}'; give the path of a checkpoint"):
        recognized(path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TaskError, match="is a file, but not a GGUF file; give the folder"):
        recognized(str(tmp_path / "model.safetensors"))
