"""Two small vision models on scikit-learn's digits, trained in seconds and cached."""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workers.device.threads import one_thread
from workers.task import OutputKind, Split
from workers.tasks.checks import extra_packages, require_integer
from workers.tasks.weights_cache import restore_or_train

#: Grey images in [0, 1], shape ``(images, 1, 8, 8)``.
Images = torch.Tensor

#: Number of images per part; the remaining ones of all 1,797 are for training.
_SIZES = {"calibration": 128, Split.EVALUATION: 400, Split.HELD_OUT: 400}
#: Factor on the contrast of the evaluation images in the shifted data, as if sent by another scanner.
_SHIFTED_CONTRAST = 4.0
_SPLIT_SEED = 7
#: Images per forward pass in evaluation.
_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class _Digits(ABC):
    """Base of both tasks: the data, the training and its cache."""

    #: Seed of the initial weights and of the order of the training images.
    seed: int = 0

    output_kind = OutputKind.LOGITS
    has_shifted = True

    def __post_init__(self) -> None:
        require_integer("seed", self.seed, low=0, high=2**32 - 1)

    @staticmethod
    @abstractmethod
    def network() -> nn.Module:
        """Return the untrained network."""

    def build_model(self) -> nn.Module:
        """Return the trained network; the first call on a machine trains it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.network()
            restore_or_train(model, self._weights_name(), train)
        return model.eval()

    def calibration(self) -> Sequence[Images]:
        """Return 128 images that nothing else uses."""
        return [images_of("calibration")[0]]

    def evaluation(self, split: Split) -> Sequence[Images]:
        """Return the 400 images of ``split``; shifted ones are the evaluation images with four times the contrast."""
        return torch.split(images_of(split)[0], _BATCH)

    def forward(self, model: nn.Module, batch: Images) -> torch.Tensor:
        """Return logits, shape ``(images, 10)``."""
        logits: torch.Tensor = model(batch)
        return logits

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the share of images whose largest logit is that of their digit; nan logits count as wrong."""
        right = outputs.argmax(dim=-1) == images_of(split)[1]
        return float((right & ~outputs.isnan().any(dim=-1)).double().mean())

    def latency_batch(self, batch_size: int) -> Images:
        """Return calibration images, repeated if there are too few."""
        images = images_of("calibration")[0]
        return images[torch.arange(batch_size) % len(images)]

    def _weights_name(self) -> str:
        # Networks and training are in this file, so any change to it leads to new training.
        source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
        versions = f"torch{torch.__version__}-sklearn{metadata.version('scikit-learn')}"
        return f"{type(self).__name__}-seed{self.seed}-{versions}-{source}"


class DigitsCNN(_Digits):
    """A convolutional network on the 8x8 digits of scikit-learn; accuracy is top-1."""

    @staticmethod
    def network() -> nn.Module:
        """Return four 3x3 convolutions and two linear layers."""
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


class DigitsViT(_Digits):
    """A small vision transformer on the 8x8 digits of scikit-learn; accuracy is top-1."""

    @staticmethod
    def network() -> nn.Module:
        """Return four transformer blocks over sixteen 2x2 patches."""
        return _VisionTransformer()


class _VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, pre-norm blocks, mean pooling."""

    def __init__(self, width: int = 64, blocks: int = 4, patches: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, kernel_size=2, stride=2)
        # Wide enough to distinguish positions from the start; with the usual 0.02, accuracy is 2 points lower.
        self.position = nn.Parameter(0.5 * torch.randn(1, patches, width))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Images) -> torch.Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # (images, 16, width)
        logits: torch.Tensor = self.head(self.norm(self.blocks(patches + self.position)).mean(dim=1))
        return logits


class _Block(nn.Module):
    """Self-attention and a feed-forward network, each with a preceding norm and a residual connection."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attention(self.norm1(x))
        hidden: torch.Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        # (images, 16, width) -> (images, heads, 16, width / heads)
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended: torch.Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


def train(model: nn.Module, epochs: int = 15) -> None:
    """Train ``model`` in place on the training images, with random numbers from torch's global generator."""
    images, labels = images_of("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    with one_thread():
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(images)), 32):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()


def images_of(part: str) -> tuple[Images, torch.Tensor]:
    """Return the images and digits of ``train``, ``calibration`` or a split; all parts but the shifted are disjoint."""
    if part == Split.SHIFTED:
        images, digits = _parts()[Split.EVALUATION]
        return _SHIFTED_CONTRAST * images, digits
    return _parts()[part]


@functools.cache
def _parts() -> Mapping[str, tuple[Images, torch.Tensor]]:
    with extra_packages():
        from sklearn.datasets import load_digits
    digits = load_digits()
    # The legacy generator, because numpy promises that its stream never changes.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(digits.target))
    images = torch.tensor(digits.images[order], dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target[order])
    sizes = [len(order) - sum(_SIZES.values()), *_SIZES.values()]
    parts = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
    return dict(zip(("train", *_SIZES), parts, strict=True))
