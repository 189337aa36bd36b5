"""Time MiniLM with the chosen kernels, interleaved with the same maps on a single kernel.

    python -m benchmarks.kernel_choice [--only onednn] [--series 5]

Both models run in one process and alternate in rounds of five passes. Each line is the ratio of their medians.
"""

import argparse
import os
import statistics
import time
from collections import Counter

import torch

from workers.backends.cpu import backend
from workers.backends.cpu.kernels import KERNELS, Kernel
from workers.device import memory
from workers.device.environment import cpu_hardware
from workers.evaluation.evaluator import Evaluator
from workers.setup import WorkerSetup

CHOICES = ("int8_static", "int8_dynamic", "int8_dynamic_per_token")
ROUNDS, PASSES = 40, 5


def built(kernels: tuple[Kernel, ...]) -> Evaluator:
    """Return MiniLM with every choice prepared by some of the kernels."""
    backend.KERNELS = kernels
    backend._timed.clear()
    evaluator = Evaluator(WorkerSetup(task="minilm-lee"))
    for choice in CHOICES:
        apply(evaluator, choice)
    return evaluator


def apply(evaluator: Evaluator, choice: str) -> None:
    description = evaluator.description
    able = [layer.name for layer in description.layers if choice not in description.refusals[layer.name]]
    evaluator.reference.deployed.apply(dict.fromkeys(able, choice))


def series(evaluators: list[Evaluator]) -> float:
    """Return the second one's median latency relative to the first one's."""
    task = evaluators[0]._task
    batch, found = task.latency_batch(1), [[], []]
    with torch.inference_mode():
        for number in range(ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                model = evaluators[which].reference.deployed.model
                task.forward(model, batch)
                for _ in range(PASSES):
                    start = time.perf_counter()
                    task.forward(model, batch)
                    found[which].append(time.perf_counter() - start)
    return statistics.median(found[1]) / statistics.median(found[0])


def main(only: str, count: int) -> None:
    memory.keep()
    alone = tuple(k for k in KERNELS if "int8_static" not in k.choices or k.name in ("fp32", only))
    evaluators = [built(alone), built(KERNELS)]
    taken = Counter(
        names["int8_static"] for names in evaluators[1].description.kernels.values() if "int8_static" in names
    )
    shown = ", ".join(f"{count} by {name}" for name, count in taken.items())
    print(f"{cpu_hardware()}, load {os.getloadavg()[0]:.1f}; layers: {shown}")
    for choice in CHOICES:
        for evaluator in evaluators:
            apply(evaluator, choice)
        ratios = sorted(series(evaluators) for _ in range(count))
        print(f"{choice}: {', '.join(f'{ratio:.2f}' for ratio in ratios)} of the time by {only} alone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="onednn", help="name of the kernel that computes all of W8A8")
    parser.add_argument("--series", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.only, arguments.series)
