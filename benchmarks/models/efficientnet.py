"""EfficientNet-Lite0 as a task: the published weights, on crops of photographs.

No images of ImageNet are needed: accuracy is the share of crops that a map classifies as full precision does. Batch
norms are folded first, as every runtime does, so that full precision is the model that is deployed.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from workers.errors import TaskError
from workers.task import OutputKind, Split
from workers.tasks import register
from workers.tasks.checks import contained
from workers.tasks.images.batch_norms import fold_batch_norms

#: Blocks per stage, kernel size, stride of the first, expansion, channels (Tan, Liu: EfficientNet-Lite).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
#: Epsilon of the batch norms, as in TensorFlow.
_EPSILON = 1e-3


@register("efficientnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EfficientNetLite0Crops:
    """EfficientNet-Lite0 on folders of crops; accuracy is agreement with full precision."""

    #: File of the state dict.
    weights: str
    #: Folder with the folders ``calibration``, ``evaluation`` and ``held_out`` of images of 224 x 224.
    images: str
    #: Images per forward pass in evaluation and calibration.
    batch_size: int = 32

    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        """Return the published model in fp32, with folded batch norms."""
        model = EfficientNetLite0()
        try:
            model.load_state_dict(torch.load(contained("weights", self.weights), weights_only=True))
        except (OSError, RuntimeError) as error:
            raise TaskError(
                f"cannot load the weights {self.weights!r}: {error}; fetch them with: "
                "python -m benchmarks.models.fetch efficientnet"
            ) from None
        model.eval()
        fold_batch_norms(model, lambda folded: self.forward(folded, self._inputs("calibration")[:2]))
        return model

    def calibration(self) -> Sequence[torch.Tensor]:
        """Return the crops that calibrate, shape ``(images, 3, 224, 224)`` per batch."""
        return torch.split(self._inputs("calibration"), self.batch_size)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        """Return the crops of a split, shape ``(images, 3, 224, 224)`` per batch."""
        return torch.split(self._inputs(split), self.batch_size)

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return logits, shape ``(images, 1000)``."""
        logits: torch.Tensor = model(batch)
        return logits

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the share of crops whose largest logit is full precision's; nan logits count as wrong."""
        right = outputs.argmax(dim=-1) == _answers(self, split)
        return float((right & ~outputs.isnan().any(dim=-1)).double().mean())

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        """Return crops that calibrate, repeated if there are too few."""
        inputs = self._inputs("calibration")
        return inputs[torch.arange(batch_size) % len(inputs)]

    def _inputs(self, split: str) -> torch.Tensor:
        return _read(contained("images", self.images) / split)


@functools.cache
def _answers(task: EfficientNetLite0Crops, split: Split) -> torch.Tensor:
    """Return the class numbers that full precision answers, shape ``(images,)``."""
    model = task.build_model()
    with torch.inference_mode():
        return torch.cat([task.forward(model, batch).argmax(dim=-1) for batch in task.evaluation(split)])


@functools.cache
def _read(folder: Path) -> torch.Tensor:
    """Return all images of a folder by name, from -1 to 1, shape ``(images, 3, height, width)``."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise TaskError(
            f"the folder {str(folder)!r} has no images; write them with: python -m benchmarks.models.fetch efficientnet"
        )
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().sub(127.0).div(128.0).contiguous()


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for images of 224 x 224; its modules have the names of the published state dict."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _padded(3, _STEM, kernel=3, stride=2), _norm(_STEM)
        self._blocks = nn.ModuleList()
        read = _STEM
        for repeats, kernel, stride, expansion, channels in _STAGES:
            for repeat in range(repeats):
                self._blocks.append(Block(read, channels, kernel, stride if repeat == 0 else 1, expansion))
                read = channels
        self._conv_head, self._bn1 = nn.Conv2d(read, _HEAD, 1, bias=False), _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape ``(images, 1000)``, of images of shape ``(images, 3, 224, 224)``."""
        hidden = F.relu6(self._bn0(self._conv_stem(_pad(images, kernel=3, stride=2))))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = F.relu6(self._bn1(self._conv_head(hidden)))
        logits: torch.Tensor = self._fc(hidden.mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection."""

    def __init__(self, read: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = read * expansion
        self._kernel, self._stride = kernel, stride
        self._adds = stride == 1 and read == channels
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(read, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = _padded(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, channels, 1, bias=False), _norm(channels)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Return the block's result, shape ``(images, channels, height, width)``."""
        hidden = F.relu6(self._bn0(self._expand_conv(read))) if hasattr(self, "_expand_conv") else read
        hidden = _pad(hidden, kernel=self._kernel, stride=self._stride)
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + read if self._adds else hidden


def _padded(read: int, channels: int, *, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that pads as TensorFlow does, together with ``_pad``."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(read, channels, kernel, stride, padding, groups=groups, bias=False)


def _pad(images: torch.Tensor, *, kernel: int, stride: int) -> torch.Tensor:
    """Pad even images for a convolution of stride 2: more on the right and below than before, as TensorFlow does."""
    if stride == 1:
        return images
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return F.pad(images, (before, after, before, after))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)
