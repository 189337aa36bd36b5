"""Weights of models that tasks train themselves, kept on disk so that each is trained once."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def cache_folder() -> Path:
    """Return the folder of trained weights: ``$AUTOTUNE_CACHE``, else ``~/.cache/quant-autotune``."""
    return Path(os.environ.get("AUTOTUNE_CACHE") or "~/.cache/quant-autotune").expanduser()


def restore_or_train(model: nn.Module, name: str, train: Callable[[nn.Module], None]) -> None:
    """Give ``model`` its cached weights, or train it and cache them.

    Safe when several processes train at once: a file appears whole or not at all, and the last one
    to finish replaces equal weights with equal weights.

    Args:
        model: changed in place.
        name: names everything that decides what the weights are; file name without its ending.
        train: trains the model in place, deterministically.
    """
    path = cache_folder() / f"{name}.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError):  # not there yet, or damaged
        train(model)
        # A disk that cannot be written to costs the next process some seconds, not this one its job.
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
