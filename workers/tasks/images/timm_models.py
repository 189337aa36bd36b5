"""Image classifiers of timm, with the preprocessing and the classes that their checkpoints name."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import source
from workers.tasks.checks import contained, extra_packages
from workers.tasks.images.classifier import Vision, called, loading
from workers.tasks.images.folder import picture_of

#: What timm writes in front of names on the hub, and of folders.
PREFIXES = _HUB, _FOLDER = "hf-hub:", "local-dir:"


def timm_vision(checkpoint: str) -> Vision:
    """Return an image classifier of timm.

    Args:
        checkpoint: a folder, or the name of one on the hub; timm's prefix may tell which.

    Raises:
        TaskError: if it cannot be loaded, or is no classifier.
    """
    model: Any = _create(checkpoint, pretrained=False)
    from timm.data import create_transform, resolve_model_data_config

    if not model.num_classes:
        raise TaskError(f"checkpoint {checkpoint!r} must be a classifier, but has no classes; give one with a head")
    # As timm's model cards do, at the size of training.
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return Vision(
        build=lambda: _create(checkpoint, pretrained=True),
        logits=called,
        prepared=lambda pictures: torch.stack([transform(picture_of(pixels)) for pixels in pictures]),
        labels=_labels(model),
    )


def _create(checkpoint: str, *, pretrained: bool) -> nn.Module:
    """Return a checkpoint's model, with its weights or with random ones."""
    with extra_packages("vision"):
        from timm import create_model
        from timm.layers import Linear

    with loading(checkpoint, "give a folder as timm.models.save_for_hf writes it, or the name of one on the hub"):
        model: nn.Module = create_model(_name(checkpoint), pretrained=pretrained)
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear  # computes the same, and is known to
    return model


def _name(checkpoint: str) -> str:
    """Return what timm calls a checkpoint."""
    if checkpoint.startswith(_HUB):
        return checkpoint
    if checkpoint.startswith(_FOLDER):
        return f"{_FOLDER}{contained('checkpoint', checkpoint.removeprefix(_FOLDER))}"
    place = source(checkpoint)
    return f"{_FOLDER if Path(place).exists() else _HUB}{place}"


def _labels(model: Any) -> tuple[str, ...]:
    """Return the names that a checkpoint gives its classes, else ImageNet's for as many, else their numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = model.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(model)
    if names is None and subset is not None:
        names = ImageNetInfo(subset).label_names()
    if not isinstance(names, dict):
        names = dict(enumerate(names or ()))
    named = {int(number): str(name) for number, name in names.items()}
    return tuple(named.get(number, str(number)) for number in range(model.num_classes))
