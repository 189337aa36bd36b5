"""Speed of each choice on this processor relative to full precision, for one linear layer of a common shape."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS
from workers.backends.typical_layer import FEATURES, OUTPUTS
from workers.device.environment import usable_cores

#: Numbers of rows: one token, and a text.
ROWS = (1, 128)
#: Timed passes per choice, alternating with full precision.
_PASSES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of one choice on this processor."""

    choice: str
    #: Why no kernel runs the choice; None if one does.
    refused: str | None = None
    #: Number of rows -> name of the kernel, and its time relative to full precision.
    kernels: dict[int, str]
    ratios: dict[int, float]


def speeds() -> list[Speed]:
    """Return the speed of every choice of a linear layer relative to full precision, using all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        with torch.inference_mode():
            return _speeds(CpuBackend())
    finally:
        torch.set_num_threads(before)


def _speeds(backend: CpuBackend) -> list[Speed]:
    linear = nn.Linear(FEATURES, OUTPUTS)
    inputs = {rows: torch.randn(rows, FEATURES).clamp_(-4.0, 4.0) for rows in ROWS}
    (layer,) = discover(nn.Sequential(linear), lambda model: model(inputs[1]))
    found = []
    for plain in CHOICES.values():
        # Skip smoothed and GPTQ choices, which run the same kernels as plain ones.
        if plain.is_smooth or plain.is_gptq or not any(plain.name in kernel.choices for kernel in KERNELS):
            continue
        choice = plain.with_weight_bits(backend.int8_weight_bits(layer))
        refused = backend.refuses(layer, choice)
        kernels, ratios = {}, {}
        for rows, x in {} if refused else inputs.items():
            shapes = [tuple(x.shape)]
            kernels[rows] = backend.kernel(linear, choice, shapes) or ""
            prepared = backend.prepare(linear, choice, ActivationRange(low=-4.0, high=4.0), shapes)
            ratios[rows] = _ratio(prepared, linear, x)
        found.append(Speed(choice=choice.name, refused=refused, kernels=kernels, ratios=ratios))
    return found


def _ratio(prepared: nn.Module, full: nn.Module, x: torch.Tensor) -> float:
    """Return the median time of ``prepared`` relative to ``full``, over alternating passes."""
    return statistics.median(_seconds(prepared, x) / _seconds(full, x) for _ in range(_PASSES))


def _seconds(module: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return time.perf_counter() - start
