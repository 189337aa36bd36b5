"""Image classifiers of timm, with the preprocessing and class names of their checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import source
from workers.tasks.checks import contained, extra_packages
from workers.tasks.images.classifier import Vision, called, loading
from workers.tasks.images.folder import picture_of

#: timm's prefixes of names on the hub, and of folders.
PREFIXES = _HUB, _FOLDER = "hf-hub:", "local-dir:"


def timm_vision(checkpoint: str) -> Vision:
    """Return an image classifier of timm.

    Args:
        checkpoint: a folder or a name on the hub, optionally with timm's prefix.

    Raises:
        TaskError: if it cannot be loaded, or is not a classifier.
    """
    model: Any = _create(checkpoint, pretrained=False)
    from timm.data import create_transform, resolve_model_data_config

    if not model.num_classes:
        raise TaskError(f"checkpoint {checkpoint!r} must be a classifier, but has no classes; give one with a head")
    # At the training size, as in timm's model cards.
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return Vision(
        build=lambda: _create(checkpoint, pretrained=True),
        logits=called,
        prepared=lambda pictures: torch.stack([transform(picture_of(pixels)) for pixels in pictures]),
        labels=_labels(model),
    )


def _create(checkpoint: str, *, pretrained: bool) -> nn.Module:
    """Return a checkpoint's model, with its own or with random weights."""
    with extra_packages("vision"):
        from timm import create_model
        from timm.layers import Linear

    with loading(checkpoint, "give a folder written by timm.models.save_for_hf, or a name on the hub"):
        model: nn.Module = create_model(_name(checkpoint), pretrained=pretrained)
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear  # equivalent, and recognised as a quantizable layer
    return model


def _name(checkpoint: str) -> str:
    """Return timm's name of a checkpoint."""
    if checkpoint.startswith(_HUB):
        return checkpoint
    if checkpoint.startswith(_FOLDER):
        return f"{_FOLDER}{contained('checkpoint', checkpoint.removeprefix(_FOLDER))}"
    place = source(checkpoint)
    return f"{_FOLDER if Path(place).exists() else _HUB}{place}"


def _labels(model: Any) -> tuple[str, ...]:
    """Return the checkpoint's class names, else those of the ImageNet subset with as many classes, else numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = model.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(model)
    if names is None and subset is not None:
        names = ImageNetInfo(subset).label_names()
    if not isinstance(names, dict):
        names = dict(enumerate(names or ()))
    named = {int(number): str(name) for number, name in names.items()}
    return tuple(named.get(number, str(number)) for number in range(model.num_classes))
