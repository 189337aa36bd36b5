"""Measure a model against itself, without and with other processes that keep the processors busy.

``workers.timing.latency`` should keep the ratio at 1 and the tail short, however busy the machine is.
"""

import multiprocessing
import os

import numpy as np
import torch
from torch import nn

from workers.timing.latency import Contender, measure

BUSY, SERIES, REPEATS, WIDTHS = (0, 1, 2), 15, 100, (128, 512)


def spin() -> None:
    while True:
        pass


def series(model: nn.Module, batch: torch.Tensor) -> tuple[float, float]:
    """Return the median latency relative to that of the same model, and the p95 relative to the median."""
    itself = Contender(install=lambda: None, run=lambda: model(batch))
    samples = measure(itself, itself, batch_size=len(batch), repeats=REPEATS, warmup_s=0.2)
    median_ms, p95_ms = np.percentile(samples.candidate_ms, [50, 95])
    return median_ms / np.median(samples.reference_ms), p95_ms / median_ms


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads, {SERIES} series of {REPEATS} passes")
    print(f"{'width':>5} {'busy':>5} {'ratio':>7} {'least':>6} {'most':>6} {'p95/p50':>8}")
    for width in WIDTHS:
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(6))).eval()
        batch = torch.randn(64, width)
        for busy in BUSY:
            others = [multiprocessing.get_context("fork").Process(target=spin, daemon=True) for _ in range(busy)]
            for other in others:
                other.start()
            try:
                with torch.inference_mode():
                    ratios, tails = zip(*(series(model, batch) for _ in range(SERIES)), strict=True)
            finally:
                for other in others:
                    other.kill()
            print(
                f"{width:5} {busy:5} {np.median(ratios):7.3f} {min(ratios):6.3f} {max(ratios):6.3f} "
                f"{np.median(tails):8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
