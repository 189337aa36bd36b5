"""A disk cache for the weights of models that tasks train themselves, so that each model is trained once."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def cache_folder() -> Path:
    """Return the folder of trained weights: ``$AUTOTUNE_CACHE``, by default ``~/.cache/quant-autotune``."""
    return Path(os.environ.get("AUTOTUNE_CACHE") or "~/.cache/quant-autotune").expanduser()


def restore_or_train(model: nn.Module, name: str, train: Callable[[nn.Module], None]) -> None:
    """Load cached weights into ``model``, or train it and cache its weights.

    Safe if several processes train at once: files are written atomically, and later processes
    replace a file by equal weights.

    Args:
        model: the model, changed in place.
        name: file name without its ending; it must identify everything that determines the weights.
        train: trains the model in place, deterministically.
    """
    path = cache_folder() / f"{name}.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError):  # missing or damaged
        train(model)
        # If the disk cannot be written, the job continues, and the next process trains again.
        with contextlib.suppress(OSError):
            _write(model, path)
    else:
        model.load_state_dict(weights)


def _write(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        staged = Path(scratch) / path.name
        save_file(model.state_dict(), staged)
        staged.replace(path)
