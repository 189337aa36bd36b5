"""``autotune tune``: from a checkpoint to its job file, its front and a map."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

import autotune
from autotune.jobs.spec import JobSpec
from workers.tasks.text.models import build_causal_model

COMMAND = str(Path(sys.executable).with_name("autotune"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of a small language model that reads letters, and a text."""
    folder = tmp_path_factory.mktemp("tune")
    build_causal_model("tiny-llama").save_pretrained(folder / "letters")
    letters = {letter: number for number, letter in enumerate("abcdefgh?")}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder / "letters")
    (folder / "text.txt").write_text("abcdefgh" * 64)
    return folder


def tune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "AUTOTUNE_DATABASE"}
    command = [COMMAND, "tune", "letters", "--budget", "20s", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_checkpoint_is_tuned_and_its_job_file_stands_beside_the_map(folder: Path) -> None:
    parameters = ("windows=6", "prompt_tokens=16", "output_tokens=2")
    options = [word for parameter in parameters for word in ("--parameter", parameter)]
    done = tune(folder, "--data", "text.txt", "--limit", "accuracy_drop=50%", *options)
    assert done.returncode == 0, done.stderr
    spec = JobSpec.load(folder / "letters-tuned" / "job.yaml")
    assert spec.task.name == "causal-lm"
    assert spec.task.parameters["text"] == str(folder / "text.txt")
    assert spec.task.parameters["windows"] == 6
    assert spec.search.time_limit_s == 20
    assert [str(limit) for limit in spec.constraints.constraints()] == ["accuracy_drop <= 0.5"]
    assert "name: causal-lm" in done.stderr
    assert "Recommended:" in done.stdout
    file = autotune.load_map(folder / "letters-tuned" / "map.json").file
    assert f"Wrote trial {file.provenance.trial} (" in done.stderr
    again = tune(folder)
    assert again.returncode == 8
    assert "exists; run it with 'autotune run'" in again.stderr


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--limit", "accuracy_drop"), "--limit must be NAME=VALUE, such as accuracy_drop=1%, but got 'accuracy_drop'"),
        (
            ("--limit", "accuracy_drop=1ms"),
            "must be a number, alone or with a unit (%), but got '1ms'",
        ),
        (("--parameter", "=3"), "--parameter must be NAME=VALUE"),
        (("--data", "nowhere"), "there is no file or folder"),
        (("--backend", "cpu", "--backend", "cpu"), "must not contain a backend twice"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(
    option: tuple[str, ...], complaint: str, folder: Path
) -> None:
    done = tune(folder, *option, "--output", "other")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (folder / "other").exists()
