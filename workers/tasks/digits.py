"""Two small vision models on scikit-learn's digits, trained in seconds and cached."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from workers.errors import TaskError
from workers.task import OutputKind, Split

Images = torch.Tensor

#: Images of each part; the rest of the 1,797 trains the model.
_CALIBRATION, _EVALUATION, _HELD_OUT = 128, 400, 400
_SPLIT_SEED = 7
_BATCH = 200


@dataclass(frozen=True)
class _Digits:
    """What both tasks share: the data, the training and its cache."""

    #: Seed of the initial weights and the order of training images.
    seed: int = 0
    #: Passes over the training images.
    epochs: int = 15

    output_kind = OutputKind.LOGITS

    def calibration(self) -> Sequence[Images]:
        """See ``Task.calibration``."""
        return [_data()[0][_parts()["calibration"]]]

    def evaluation(self, split: Split) -> Sequence[Images]:
        """See ``Task.evaluation``."""
        return list(_data()[0][_parts()[split]].split(_BATCH))

    def forward(self, model: nn.Module, batch: Images) -> torch.Tensor:
        """Return logits; (images, 1, 8, 8) -> (images, 10)."""
        logits: torch.Tensor = model(batch)
        return logits

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the share of images whose largest logit is their digit."""
        return float((outputs.argmax(dim=-1) == _data()[1][_parts()[split]]).double().mean())

    def latency_batch(self, batch_size: int) -> Images:
        """Return the first calibration images, repeated if there are too few."""
        images = self.calibration()[0]
        return images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]

    def _trained(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Return the trained model, from the cache if it was trained before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = build()
            path = _cache_file(f"{type(self).__name__}:{self}:{model}:{torch.__version__}")
            if not path.exists():
                _train(model, self.epochs)
                _save(model, path)
        model.load_state_dict(load_file(path))
        return model.eval()


@dataclass(frozen=True)
class DigitsCNN(_Digits):
    """A convolutional network on 8x8 digits: top-1 accuracy."""

    def build_model(self) -> nn.Module:
        """See ``Task.build_model``."""
        return self._trained(_cnn)


@dataclass(frozen=True)
class DigitsViT(_Digits):
    """A small vision transformer on 8x8 digits: top-1 accuracy."""

    def build_model(self) -> nn.Module:
        """See ``Task.build_model``."""
        return self._trained(_VisionTransformer)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


class _VisionTransformer(nn.Module):
    """Sixteen 2x2 patches, four pre-norm blocks of width 96."""

    def __init__(self, width: int = 96, blocks: int = 4, patches: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Images) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position  # (n, patches, width)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


class _Block(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and a residual."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        # (n, patches, width) -> (n, heads, patches, width / heads)
        q, k, v = (
            p(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out_proj(attended)
        hidden: torch.Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


def _train(model: nn.Module, epochs: int) -> None:
    images, labels = (part[_parts()["train"]] for part in _data())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


@functools.cache
def _data() -> tuple[Images, torch.Tensor]:
    """Return the images, shape ``(1797, 1, 8, 8)`` in [0, 1], and their digits, shape ``(1797,)``."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise TaskError(
            "the digits tasks need scikit-learn, which is not installed; "
            "install the tasks with: pip install 'quant-autotune[tasks]'"
        ) from None
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return images, torch.tensor(digits.target, dtype=torch.int64)


@functools.cache
def _parts() -> dict[str, torch.Tensor]:
    """Return the indices of the four disjoint parts."""
    order = torch.randperm(len(_data()[0]), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    sizes = [_CALIBRATION, _EVALUATION, _HELD_OUT]
    parts = order.split([*sizes, len(order) - sum(sizes)])
    return dict(zip(("calibration", Split.EVALUATION, Split.HELD_OUT, "train"), parts, strict=True))


def _cache_file(identity: str) -> Path:
    base = os.environ.get("AUTOTUNE_CACHE") or Path.home() / ".cache" / "quant-autotune"
    return Path(base) / "digits" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def _save(model: nn.Module, path: Path) -> None:
    """Write the weights whole or not at all: another worker may be training the same model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as staged:
        pass
    save_file(model.state_dict(), staged.name)
    Path(staged.name).replace(path)
