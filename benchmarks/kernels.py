"""Time every kernel of every choice on single layers, interleaved with full precision, and check the choice of kernel.

    python -m benchmarks.kernels [--rounds 40] [--mask]

Each line is a layer and a choice, with the median time of each kernel relative to full precision in the same rounds.
The kernel that the backend takes is marked ``*``. The last line shows how far the worst of these is from the fastest.
``--mask`` uses only the features of AVX2.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS
from workers.backends.cpu.selection import only
from workers.device.environment import usable_cores
from workers.device.processor import AVX2_ALONE, this_processor

RANGE = ActivationRange(low=-4.0, high=4.0)
CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    **{
        f"linear {rows} x {features} x {outputs}": (
            lambda features=features, outputs=outputs: nn.Linear(features, outputs),
            torch.randn(rows, features),
        )
        for rows, features, outputs in (
            *((1, 384, 1536), (1, 2048, 2048), (16, 2048, 2048), (32, 384, 384)),
            *((128, 384, 384), (128, 384, 1536), (128, 1536, 384), (512, 384, 1536), (512, 2048, 2048)),
        )
    },
    "conv2d 64 x 56 x 56, 64 of 3 x 3": (lambda: nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56)),
    "conv2d 96 x 28 x 28, depthwise": (lambda: nn.Conv2d(96, 96, 3, padding=1, groups=96), torch.randn(1, 96, 28, 28)),
    "conv2d 96 x 28 x 28, 192 of 1 x 1": (lambda: nn.Conv2d(96, 192, 1), torch.randn(1, 96, 28, 28)),
    "conv1d 384 x 500, 384 of 3": (lambda: nn.Conv1d(384, 384, 3, padding=1), torch.randn(1, 384, 500)),
    "transposed conv2d 64 x 32 x 32, 32 of 4 x 4": (
        lambda: nn.ConvTranspose2d(64, 32, 4, 2, 1),
        torch.randn(1, 64, 32, 32),
    ),
    "lstm 64 steps of 256, 512 features": (lambda: nn.LSTM(256, 512), torch.randn(64, 1, 256)),
    "embedding 128 rows of 384": (lambda: nn.Embedding(30_522, 384), torch.randint(0, 30_522, (1, 128))),
}


def ratios(full: nn.Module, modules: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return name -> time of a pass relative to full precision in the same round, median over rounds."""
    found: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds + 3):
        full_s = seconds(full, x)
        for name, module in modules.items():
            found[name].append(seconds(module, x) / full_s)
    return {name: statistics.median(of_module[3:]) for name, of_module in found.items()}


def seconds(module: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return time.perf_counter() - start


def main(rounds: int) -> None:
    torch.set_num_threads(usable_cores())
    torch.manual_seed(0)
    backend, processor = CpuBackend(), this_processor()
    print(f"{backend.hardware()}, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    worst, worst_at = 1.0, ""
    for title, (build, x) in CASES.items():
        model = nn.Sequential(build()).eval()
        (layer,) = discover(model, lambda m, x=x: m(x))
        for plain in CHOICES.values():
            if plain.is_smooth or plain.is_gptq:
                continue  # they run the kernels of the plain choices
            choice = plain.with_weight_bits(backend.int8_weight_bits(layer))
            kernels = [k for k in KERNELS if layer.kind in k.kinds and choice.name in k.choices]
            able = [kernel for kernel in kernels if kernel.lacks(processor, choice) is None]
            if not able or backend.refuses(layer, choice) is not None:
                continue
            with torch.inference_mode():
                modules = {k.name: only(k, [tuple(x.shape)]).prepare(model[0], choice, RANGE) for k in able}
                taken = backend.kernel(model[0], choice, [tuple(x.shape)])
                found = ratios(model[0], modules, x, rounds)
            shown = ", ".join(f"{name}{'*' * (name == taken)} {ratio:.2f}" for name, ratio in found.items())
            print(f"{title}, {choice.name}: {shown}", flush=True)
            behind = found[str(taken)] / min(found.values())
            if behind > worst:
                worst, worst_at = behind, f"{title}, {choice.name}"
    print(f"The kernels taken are at most {100 * (worst - 1):.1f} % slower than the fastest ({worst_at or 'none'}).")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--mask", action="store_true", help="use only the features of AVX2")
    arguments = parser.parse_args()
    if arguments.mask:
        # PyTorch reads these when it is imported.
        command = [sys.executable, "-m", "benchmarks.kernels", "--rounds", str(arguments.rounds)]
        sys.exit(subprocess.run(command, env={**os.environ, **AVX2_ALONE}, check=False).returncode)
    main(arguments.rounds)
