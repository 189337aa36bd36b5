"""Folders in the format of transformers' ``save_pretrained``: a ``config.json`` and safetensors files."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autotune.exporters.safetensors_header import sort_header
from workers.model.attention import unroll_as


def refusal(model: Any) -> str | None:
    """Return why such a folder cannot hold ``model``, or None if it can."""
    # Compare module names, to avoid importing transformers for other models.
    if not any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        return f"needs a model of transformers, but the task builds a {type(model).__name__}"
    with torch.device("meta"):
        loaded = type(model)(model.config)
        unroll_as(loaded, dict(model.named_modules()))
    # Compare names with shapes, because a transposed weight has another shape unless it is square.
    changed = sorted(name for name, _ in _shapes(loaded) ^ _shapes(model))
    if not changed:
        return None
    return (
        f"needs a model as transformers loads it, but the task changed layers of this {type(model).__name__}, "
        f"{changed[0]} among them; turn that off in the task, for example with fold_batch_norms: false"
    )


def _shapes(model: nn.Module) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in model.state_dict().items()}


def save(model: Any, folder: Path) -> Mapping[str, Any]:
    """Write a model of transformers into ``folder`` and return the data for ``load``."""
    with no_progress_bar():
        model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        sort_header(weights)
    return {"class": type(model).__name__}


def load(folder: Path, details: Mapping[str, Any]) -> nn.Module:
    """Return the model that ``save`` wrote into ``folder``, as transformers loads it."""
    import transformers

    with no_progress_bar():
        loaded: nn.Module = getattr(transformers, details["class"]).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    return loaded


def no_progress_bar() -> contextlib.redirect_stderr[io.StringIO]:
    """Return a context that hides progress bars; transformers itself can only disable them for the whole process."""
    return contextlib.redirect_stderr(io.StringIO())
