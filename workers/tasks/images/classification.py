"""Image classification on a folder of images; accuracy is top-1."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from workers.errors import TaskError
from workers.task import OutputKind, Split
from workers.tasks.checks import require_flag, require_integer, require_text
from workers.tasks.images.classifier import Vision
from workers.tasks.images.folder import image_paths, read_image
from workers.tasks.images.models import TINY, build_image_model, vision_of
from workers.tasks.images.shape_images import Pixels, draw
from workers.tasks.images.torchvision_models import PREFIX

#: Prepared images, shape ``(images, 3, height, width)``.
Images = torch.Tensor

#: Minimum number of images: at least one each for calibration and both splits.
_LEAST_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class ImageClassification:
    """An image classifier of transformers, timm or torchvision; accuracy is top-1.

    Without labels, the decisions of full precision count as correct. Images alternate between calibration, evaluation
    and held-out data.
    """

    #: A folder of safetensors or a name on the hub, for transformers or timm; an architecture of torchvision such as
    #: ``torchvision:resnet50``; or ``tiny-resnet``, ``tiny-mobilenet``.
    checkpoint: str = "tiny-resnet"
    #: For torchvision: a safetensors or state dict file, or torchvision's name of weights such as ``DEFAULT``.
    weights: str = ""
    #: A folder with one subfolder of images per class, or of images only; empty for shapes, which tiny models know.
    images: str = ""
    #: Whether to fold batch norms into the preceding convolutions where outputs stay equal.
    fold_batch_norms: bool = True
    #: Maximum number of images each for calibration, evaluation and held-out data.
    samples: int = 300
    #: Images per forward pass in evaluation and calibration.
    batch_size: int = 50

    output_kind = OutputKind.LOGITS

    def __post_init__(self) -> None:
        require_text("checkpoint", self.checkpoint)
        require_text("weights", self.weights)
        require_text("images", self.images)
        require_flag("fold_batch_norms", self.fold_batch_norms)
        for name in ("samples", "batch_size"):
            require_integer(name, getattr(self, name), low=1, high=1 << 20)
        if self.checkpoint not in TINY and not self.images:
            raise TaskError(f"checkpoint {self.checkpoint!r} needs a folder of images; give it as the parameter images")
        if self.checkpoint.startswith(PREFIX) != bool(self.weights):
            raise TaskError(
                f"task parameter 'weights' is required for architectures of torchvision, such as {PREFIX}resnet50, and "
                f"must be empty otherwise, but got {self.weights!r} for checkpoint {self.checkpoint!r}"
            )

    def build_model(self) -> nn.Module:
        """Return the checkpoint's model in fp32; the first call on a machine trains a tiny one."""
        return build_image_model(self._vision, fold=self.fold_batch_norms)

    def calibration(self) -> Sequence[Images]:
        """Return every third image."""
        return torch.split(self._inputs[0::3], self.batch_size)

    def evaluation(self, split: Split) -> Sequence[Images]:
        """Return every third image, starting with a different one per split."""
        return torch.split(self._inputs[_part(split)], self.batch_size)

    def forward(self, model: nn.Module, batch: Images) -> torch.Tensor:
        """Return logits, shape ``(images, classes)``."""
        return self._vision.logits(model, batch)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the share of images whose largest logit is that of their class; nan logits count as wrong."""
        right = outputs.argmax(dim=-1) == self._classes[_part(split)]
        return float((right & ~outputs.isnan().any(dim=-1)).double().mean())

    def latency_batch(self, batch_size: int) -> Images:
        """Return calibration images, repeated if there are too few."""
        images = self._inputs[0::3]
        return images[torch.arange(batch_size) % len(images)]

    @functools.cached_property
    def _vision(self) -> Vision:
        return vision_of(self.checkpoint, self.weights)

    @functools.cached_property
    def _paths(self) -> list[tuple[Path, str | None]]:
        """All images of the folder."""
        found = image_paths(self.images)
        if len(found) < _LEAST_IMAGES:
            raise TaskError(
                f"at least {_LEAST_IMAGES} images are needed, for calibration, evaluation and held-out data, but the "
                f"folder {self.images!r} has {len(found)}; give a folder of png or jpeg files"
            )
        return found

    @functools.cached_property
    def _shapes(self) -> list[tuple[Pixels, str]]:
        return draw(3 * self.samples, seed=0)

    @functools.cached_property
    def _inputs(self) -> Images:
        if not self.images:
            return self._vision.prepared([picture for picture, _ in self._shapes])
        # Prepare images one by one, because prepared images need less memory.
        chosen = self._paths[: 3 * self.samples]
        return torch.cat([self._vision.prepared([read_image(path)]) for path, _ in chosen])

    @functools.cached_property
    def _classes(self) -> torch.Tensor:
        """Class number of each image, shape ``(images,)``; the decision of full precision if there are no labels."""
        named = self._paths if self.images else self._shapes
        names = {name for _, name in named}
        if None in names:
            model = self.build_model()
            with torch.inference_mode():
                parts = torch.split(self._inputs, self.batch_size)
                return torch.cat([self.forward(model, part).argmax(dim=-1) for part in parts])
        numbers = class_numbers(sorted(str(name) for name in names), self._vision.labels)
        return torch.tensor([numbers[str(name)] for _, name in named[: len(self._inputs)]])


def class_numbers(folders: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Return folder -> class number: by name, or by position if there are as many folders as classes.

    Raises:
        TaskError: if neither is possible.
    """
    if set(folders) <= set(labels):
        return {name: labels.index(name) for name in folders}
    if len(folders) == len(labels):
        return {name: number for number, name in enumerate(folders)}
    strange = next(name for name in folders if name not in labels)
    raise TaskError(
        f"folders of images must be named after classes of the model, but got {strange!r}; it knows "
        f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}. Rename them, or give one folder for each of its "
        f"{len(labels)} classes, in order"
    )


def _part(split: Split) -> slice:
    return slice(1 if split is Split.EVALUATION else 2, None, 3)
