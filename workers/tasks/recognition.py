"""Finds the built-in task of a checkpoint by the architecture in its configuration."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.errors import TaskError
from workers.measurement import Workload
from workers.tasks.checks import contained


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """The task of a checkpoint."""

    task: str
    #: Task parameter that names the data, and what it names; both are empty if the task needs none.
    data: str = ""
    content: str = ""
    #: Whether the task has no data of its own.
    needs_data: bool = False
    #: Workload that a user of such a model waits for.
    workload: Workload = Workload.FORWARD


_CAUSAL = Recognized(task="causal-lm", data="text", content="a file of text", workload=Workload.PREFILL)
_IMAGES = Recognized(task="image-classification", data="images", content="a folder of images", needs_data=True)
#: Pattern of an architecture's name -> its task; the first one that matches counts.
_ARCHITECTURES = {
    r"ForCausalLM|LMHeadModel": _CAUSAL,
    r"ForImageClassification": _IMAGES,
    r"WhisperForConditionalGeneration": Recognized(
        task="speech-seq2seq", data="audio", content="a folder of wav files", needs_data=True
    ),
    r"StableDiffusionPipeline": Recognized(
        task="text-to-image", data="prompts", content="a file with one prompt per line", workload=Workload.SAMPLING
    ),
    r"UNet2D(Condition)?Model|DiTTransformer2DModel": Recognized(task="diffusion", workload=Workload.SAMPLING),
}
#: Files of a folder that name its architecture, and keys of them that do.
_FILES, _KEYS = ("config.json", "model_index.json"), ("architectures", "_class_name")
#: Beginnings of names of checkpoints of timm and torchvision.
_IMAGE_LIBRARIES = ("hf-hub:", "local-dir:", "torchvision:")
_GGUF = ".gguf"
#: A name on the hub, which may have an owner.
_HUB_NAME = r"\w[\w.-]*(/[\w.-]+)?"


def recognized(checkpoint: str) -> Recognized:
    """Return the task of a checkpoint.

    Args:
        checkpoint: a folder, a GGUF file, or a name on the hub.

    Raises:
        TaskError: if the configuration cannot be read, or no task is for its architecture.
    """
    if checkpoint.endswith(_GGUF):
        _find_gguf(checkpoint)
        return _CAUSAL
    if checkpoint.startswith(_IMAGE_LIBRARIES):
        return _IMAGES
    configuration = _configuration(checkpoint)
    if "architecture" in configuration:  # of timm
        return _IMAGES
    named = next((configuration[key] for key in _KEYS if configuration.get(key)), "none")
    architecture = named[0] if isinstance(named, list) else str(named)
    for pattern, task in _ARCHITECTURES.items():
        if re.search(pattern, architecture):
            return task
    raise TaskError(
        f"no built-in task is for the architecture of {checkpoint!r}, {architecture}; known are language models, image "
        "classifiers, Whisper, Stable Diffusion and its denoisers. Load the model and pass it to autotune.tune, or "
        "write a task"
    )


def _find_gguf(checkpoint: str) -> None:
    """Check that there is such a GGUF file, in a folder or in a checkpoint on the hub."""
    place, _, file = checkpoint.rpartition("/")
    if not contained("checkpoint", checkpoint).is_file():
        # On the hub only if there is an owner, too: with one folder it is most likely a mistyped path.
        _hub_file(checkpoint, place if "/" in place else "", (file,))


def _configuration(checkpoint: str) -> Mapping[str, Any]:
    folder = contained("checkpoint", checkpoint)
    if folder.is_file():
        raise TaskError(f"{checkpoint!r} is a file, but not a GGUF file; give the folder of a checkpoint")
    if not folder.is_dir():
        return _read(_hub_file(checkpoint, checkpoint, _FILES))
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        raise TaskError(f"folder {checkpoint!r} holds no checkpoint: it has neither {_FILES[0]} nor {_FILES[1]}")
    return _read(found)


def _hub_file(checkpoint: str, name: str, files: Sequence[str]) -> Path:
    """Return the first of ``files`` of the checkpoint ``name`` on the hub, unless that can only be a path."""
    if not re.fullmatch(_HUB_NAME, name) or contained("checkpoint", name).is_dir():
        raise TaskError(f"there is no file or folder {checkpoint!r}; give the path of a checkpoint")
    from workers.tasks.checkpoints import hub_file  # brings PyTorch, which folders do not need

    return hub_file(name, files, checkpoint=checkpoint)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read {str(path)!r}: {error}; give the folder of a checkpoint") from None
    return found if isinstance(found, dict) else {}
