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
    assert recognized("models/some-model.gguf").task == "causal-lm"
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


def test_a_name_that_the_hub_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="there is no folder 'nobody/nothing', and the hub cannot be asked for it"):
        recognized("nobody/nothing")
