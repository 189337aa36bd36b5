"""Image classifiers of torchvision: an architecture, and weights from a file or by torchvision's name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from search_spaces.errors import unknown
from workers.errors import TaskError
from workers.tasks.checks import contained, extra_packages
from workers.tasks.images.classifier import Vision, called, loading
from workers.tasks.images.folder import picture_of

#: Prefix of an architecture's name.
PREFIX = "torchvision:"
_REMEDY = (
    "give the parameter weights a state dict file of this architecture, or torchvision's name of weights, such as "
    "DEFAULT"
)


def torchvision_vision(checkpoint: str, weights: str) -> Vision:
    """Return an image classifier of torchvision.

    Args:
        checkpoint: prefix and name of an architecture.
        weights: a safetensors or state dict file, or torchvision's name of weights.

    Raises:
        TaskError: if the classifier cannot be loaded.
    """
    with extra_packages("vision"):
        from torchvision import models

    architecture, known = checkpoint.removeprefix(PREFIX), models.list_models(module=models)
    if architecture not in known:
        raise TaskError(unknown("classifier of torchvision", architecture, known))
    recipe = _recipe(models.get_model_weights(architecture), weights)
    options, transform = _options(architecture, recipe), recipe.transforms()

    def build() -> nn.Module:
        with loading(checkpoint, _REMEDY):
            model: nn.Module = models.get_model(architecture, num_classes=classes, **options)
            model.load_state_dict(_state(recipe, weights))
        return model

    with loading(checkpoint, _REMEDY):
        *_, last = models.get_model(architecture, **options).state_dict()  # RegNet cannot be built on meta
        classes = len(_state(recipe, weights)[last])
    names = recipe.meta["categories"]
    return Vision(
        build=build,
        logits=called,
        prepared=lambda pictures: torch.stack([transform(picture_of(pixels)) for pixels in pictures]),
        labels=tuple(names if len(names) == classes else map(str, range(classes))),
    )


def _recipe(published: Any, weights: str) -> Any:
    """Return torchvision's entry for the given weights, found by name or file name; by default its default entry.

    The entry defines the preprocessing, also for weights from elsewhere.
    """
    if weights in published.__members__:
        return published[weights]
    return next((own for own in published if Path(own.url).name == Path(weights).name), published.DEFAULT)


def _options(architecture: str, recipe: Any) -> dict[str, Any]:
    """Return the arguments with which torchvision builds an architecture when it loads weights."""
    if architecture in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False, "aux_logits": False}
    return {"image_size": recipe.meta["min_size"][0]} if architecture.startswith("vit_") else {}


def _state(recipe: Any, weights: str) -> Mapping[str, torch.Tensor]:
    """Return the state dict of a file, or of torchvision's weights, which are downloaded once."""
    if weights in type(recipe).__members__:
        state = recipe.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    elif weights.endswith(".safetensors"):
        state = load_file(contained("weights", weights))
    else:
        state = torch.load(contained("weights", weights), map_location="cpu", weights_only=True)
    # Drop auxiliary heads, which are for training only; DenseNet's names changed after its weights were published.
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): tensor
        for name, tensor in state.items()
        if not name.lower().startswith("aux")
    }
