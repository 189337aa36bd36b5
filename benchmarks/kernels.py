"""Time every choice of the backend on single layers, as the search will run them: median of many calls, in ms."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange, Smoothing
from workers.backends import build_backend
from workers.calibration.moments import MomentSketch
from workers.environment import usable_cores

CALLS, WARM_UP = 200, 20
LOW, HIGH = -4.0, 4.0
INDICES = torch.randint(0, 30_522, (1, 128))
CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    **{
        f"linear {rows} x {features} -> {outputs}": (
            lambda features=features, outputs=outputs: nn.Linear(features, outputs),
            torch.randn(rows, features),
        )
        for features, outputs in ((384, 1536), (1024, 4096))
        for rows in (1, 8, 32, 128, 512)
    },
    "conv2d 64 x 56 x 56 -> 64, 3 x 3": (lambda: nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56)),
    "the same, channels_last": (
        lambda: nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last),
        torch.randn(1, 64, 56, 56).contiguous(memory_format=torch.channels_last),
    ),
    "conv1d 384 x 500 -> 384, 3": (lambda: nn.Conv1d(384, 384, 3, padding=1), torch.randn(1, 384, 500)),
    "transposed conv2d 64 x 32 x 32 -> 32, 4 x 4 / 2": (
        lambda: nn.ConvTranspose2d(64, 32, 4, 2, 1),
        torch.randn(1, 64, 32, 32),
    ),
    "lstm 64 steps x 256 -> 512, 2 layers": (lambda: nn.LSTM(256, 512, 2), torch.randn(64, 1, 256)),
    "gru 64 steps x 256 -> 512, 2 layers": (lambda: nn.GRU(256, 512, 2), torch.randn(64, 1, 256)),
    "lstm 32 steps of 16 x 256 -> 256, both ways": (
        lambda: nn.LSTM(256, 256, bidirectional=True),
        torch.randn(32, 16, 256),
    ),
    "embedding 128 rows of 384": (lambda: nn.Embedding(30_522, 384), INDICES),
    "embedding bags, 64 of 32 rows of 128": (
        lambda: nn.EmbeddingBag(100_000, 128, mode="sum"),
        torch.randint(0, 100_000, (64, 32)),
    ),
}


def median_ms(module: nn.Module, x: torch.Tensor) -> float:
    elapsed = []
    with torch.inference_mode():
        for _ in range(WARM_UP + CALLS):
            start = time.perf_counter()
            module(x)
            elapsed.append(time.perf_counter() - start)
    return float(np.median(elapsed[WARM_UP:])) * 1e3


def main() -> None:
    torch.set_num_threads(usable_cores())
    backend = build_backend("auto")
    print(backend.hardware())
    for title, (build, x) in CASES.items():
        model = nn.Sequential(build()).eval()
        (layer,) = discover(model, lambda m, x=x: m(x))
        smoothing = Smoothing(factors=(1.0,) * layer.weight_shape[-1], low=LOW, high=HIGH)
        sketch = MomentSketch(layer.weight_shape[-1])
        sketch.add(torch.ones(1, layer.weight_shape[-1]))
        calibrated = ActivationRange(low=LOW, high=HIGH, smoothing=smoothing, moments=sketch.moments())
        figures = [
            f"{choice.name} {median_ms(backend.prepare(model[0], choice, calibrated), x):.3f}"
            for choice in CHOICES.values()
            if backend.refuses(layer, choice) is None
        ]
        print(f"{title}: {', '.join(figures)}")


if __name__ == "__main__":
    main()
