"""Folders of transformers: a ``config.json`` beside safetensors, written and loaded by ``save_pretrained``'s rules."""

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
    """Return why no such folder can hold ``model``, or None if one can."""
    # By name, because nothing but the model itself says whether transformers is worth importing.
    if not any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        return f"is for models of transformers, but the task builds a {type(model).__name__}"
    with torch.device("meta"):
        loaded = type(model)(model.config)
        unroll_as(loaded, dict(model.named_modules()))
    # Items, so that a shape counts: square layers apart, a transposed weight has another.
    changed = sorted(name for name, _ in _shapes(loaded) ^ _shapes(model))
    if not changed:
        return None
    return (
        f"is for models as transformers loads them, but the layers of this {type(model).__name__} were changed, "
        f"{changed[0]} among them: by the task, which may leave that, as by fold_batch_norms: false"
    )


def _shapes(model: nn.Module) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in model.state_dict().items()}


def save(model: Any, folder: Path) -> Mapping[str, Any]:
    """Write a model of transformers into ``folder`` and return what ``load`` needs."""
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
    """Return a context without progress bars, which transformers turns off for the whole process only."""
    return contextlib.redirect_stderr(io.StringIO())
