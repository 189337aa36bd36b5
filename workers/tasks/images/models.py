"""Image classifiers with their preprocessing: checkpoints of any library, and tiny models for pictures of shapes."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workers.device.threads import one_thread
from workers.tasks.checkpoints import explained, quiet_transformers, source
from workers.tasks.images import shape_images, timm_models, torchvision_models
from workers.tasks.images.batch_norms import fold_batch_norms
from workers.tasks.images.classifier import Vision
from workers.tasks.images.shape_images import SHAPES, SIDE, Pixels, draw
from workers.tasks.images.timm_models import timm_vision
from workers.tasks.images.torchvision_models import torchvision_vision
from workers.tasks.weights_cache import restore_or_train

#: Checkpoints without files: name -> architecture and configuration.
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny-resnet": (
        "resnet",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"},
    ),
    "tiny-mobilenet": (
        "mobilenet_v2",
        {"depth_multiplier": 0.25, "image_size": SIDE, "output_stride": 16, "classifier_dropout_prob": 0.0},
    ),
}
#: Number of training pictures for tiny models, and their seed; no task evaluates on them.
_TRAINING, _SEED = 900, 1


def vision_of(checkpoint: str, weights: str = "") -> Vision:
    """Return an image classifier.

    Args:
        checkpoint: name of a tiny model, an architecture of torchvision with its prefix, or a folder or a name on the
            hub, for timm or transformers.
        weights: weights for torchvision.

    Raises:
        TaskError: if the classifier cannot be loaded.
    """
    if checkpoint in TINY:
        return Vision(
            build=lambda: _tiny_model(checkpoint), logits=_logits_of_transformers, prepared=_scaled, labels=SHAPES
        )
    if checkpoint.startswith(torchvision_models.PREFIX):
        return torchvision_vision(checkpoint, weights)
    if checkpoint.startswith(timm_models.PREFIXES) or _is_of_timm(checkpoint):
        return timm_vision(checkpoint)
    return _transformers_vision(checkpoint)


def build_image_model(vision: Vision, *, fold: bool) -> nn.Module:
    """Return an image classifier in fp32 and evaluation mode.

    Args:
        vision: the classifier.
        fold: whether to fold batch norms into convolutions where outputs stay equal.

    Raises:
        TaskError: if the model cannot be loaded.
    """
    model = vision.build().eval()
    if fold:
        example = vision.prepared([picture for picture, _ in draw(2, _SEED)])
        fold_batch_norms(model, lambda folded: vision.logits(folded, example))
    return model


def _is_of_timm(checkpoint: str) -> bool:
    """Return whether a checkpoint belongs to timm, whose configurations name one architecture."""
    with quiet_transformers(), explained("model", checkpoint, TINY):
        from transformers import PreTrainedConfig

        configuration, _ = PreTrainedConfig.get_config_dict(source(checkpoint))
    return "architecture" in configuration


def _transformers_vision(checkpoint: str) -> Vision:
    with quiet_transformers(), explained("image processor", checkpoint, TINY):
        from transformers import AutoConfig, AutoImageProcessor

        place = source(checkpoint)
        # The default backend needs torchvision.
        processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            place, backend="pil"
        )
        names: Mapping[int, str] = AutoConfig.from_pretrained(place).id2label
    return Vision(
        build=lambda: _transformers_model(checkpoint),
        logits=_logits_of_transformers,
        prepared=lambda pictures: processor(list(pictures), return_tensors="pt")["pixel_values"],
        labels=tuple(names[number] for number in sorted(names)),
    )


def _transformers_model(checkpoint: str) -> nn.Module:
    with quiet_transformers(), torch.random.fork_rng(devices=[]), explained("model", checkpoint, TINY):
        from transformers import AutoModelForImageClassification

        model: nn.Module = AutoModelForImageClassification.from_pretrained(
            source(checkpoint), dtype=torch.float32, use_safetensors=True
        )
        return model


def _tiny_model(name: str) -> nn.Module:
    """Return a tiny model; the first call on a machine trains it."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForImageClassification

        torch.manual_seed(0)
        model: nn.Module = AutoModelForImageClassification.from_config(  # type: ignore[no-untyped-call]
            _configuration(name)
        )
        restore_or_train(model, _weights_name(name), train)
        return model


def _logits_of_transformers(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(pixel_values=inputs).logits
    return logits


def train(model: nn.Module, epochs: int = 8) -> None:
    """Train ``model`` in place on pictures of shapes, with random numbers from torch's global generator."""
    pictures, names = zip(*draw(_TRAINING, _SEED), strict=True)
    images, labels = _scaled(pictures), torch.tensor([SHAPES.index(name) for name in names])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNet's configured momentum suits training runs of weeks
    steps = epochs * -(-len(images) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    with one_thread():
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(images)), 32):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(pixel_values=images[batch]).logits, labels[batch], label_smoothing=0.1)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()


def _configuration(checkpoint: str) -> Any:
    from transformers import AutoConfig

    architecture, sizes = TINY[checkpoint]
    return AutoConfig.for_model(architecture, num_labels=len(SHAPES), **sizes)


def _weights_name(checkpoint: str) -> str:
    # Networks, training and pictures are in these files, so any change to them leads to new training.
    sources = b"".join(Path(file).read_bytes() for file in (__file__, shape_images.__file__))
    return f"{checkpoint}-torch{torch.__version__}-{hashlib.sha256(sources).hexdigest()[:12]}"


def _scaled(pictures: Sequence[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()
