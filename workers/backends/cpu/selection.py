"""Selection of a layer's kernel: the fastest one on this processor, timed at the layer's own shapes."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.kernels import Kernel
from workers.backends.packed import PackedLayer

#: Maximum and minimum number of rounds; in each, every kernel has one timed pass, and the median counts.
_ROUNDS, _FEWEST_ROUNDS = 30, 5
#: Seconds after which rounds end.
_LONGEST_S = 0.1
#: Kernels whose first passes take this many times as long as the fastest are not timed further.
_HOPELESS = 2.0
#: Kernels up to this factor slower than the fastest count as equally fast, and the last of them is used. Layers should
#: not change kernels without a reason: in MiniLM the first layer after a change took up to a quarter longer.
_TIE = 1.05
#: Largest difference from the first kernel, relative to the outputs; kernels beyond it are wrong and not used.
_LARGEST_ERROR = 0.02

#: Range of the inputs that kernels are timed with.
_RANGE = ActivationRange(low=-4.0, high=4.0)

T = TypeVar("T")

#: Shape of an input, batch first.
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The kernels of one layer and choice, which all share one form of packed weights."""

    #: Shape of the input -> the kernel that is fastest there.
    kernels: Mapping[Shape, Kernel]

    @property
    def kernel(self) -> Kernel:
        """The first kernel; all kernels prepare the same layer."""
        return next(iter(self.kernels.values()))

    @property
    def name(self) -> str:
        """Name shown to people: a single name, or one per number of rows if they differ."""
        names = {rows_of(shape): kernel.name for shape, kernel in self.kernels.items()}
        if len(set(names.values())) == 1:
            return self.kernel.name
        return ", ".join(_at(rows, name) for rows, name in sorted(names.items()))

    def prepare(self, module: nn.Module, *args: object) -> PackedLayer:
        """Return the layer prepared for these kernels; see ``kernels.Prepare``."""
        prepared = self.kernel.prepare(module, *args)  # type: ignore[arg-type]
        follow = getattr(prepared, "follow", None)
        if follow is not None:
            follow({rows_of(shape): kernel.name for shape, kernel in self.kernels.items()})
        return prepared


def rows_of(shape: Shape) -> int:
    """Return the number of rows in a linear layer's input."""
    return math.prod(shape[:-1])


def only(kernel: Kernel, shapes: Sequence[Shape]) -> Pick:
    """Return the pick that uses one kernel for all shapes."""
    return Pick(kernels=dict.fromkeys(shapes or ((1,),), kernel))


def named(name: str, kernels: Sequence[Kernel], shapes: Sequence[Shape]) -> Pick | None:
    """Return the pick whose ``Pick.name`` is ``name``, or None if these kernels and shapes do not yield it."""
    parts = name.split(", ")
    found = {
        shape: kernel
        for shape in shapes
        for kernel in kernels
        if kernel.name == name or _at(rows_of(shape), kernel.name) in parts
    }
    forms = {kernel.prepare for kernel in found.values()}
    return Pick(kernels=found) if len(found) == len(shapes) and len(forms) == 1 else None


def _at(rows: int, kernel: str) -> str:
    return f"{kernel} at {rows} row{'s' if rows > 1 else ''}"


def fastest(module: nn.Module, choice: LayerChoice, kernels: Sequence[Kernel], shapes: Sequence[Shape]) -> Pick:
    """Return the fastest pick at ``shapes``, which all have equal weight.

    Args:
        module: the full-precision layer.
        choice: choice that the kernels compute; it must need no calibration beyond a range.
        kernels: kernels in ascending order of preference.
        shapes: input shapes of the layer, at least one.
    """
    taken: dict[Kernel, dict[Shape, float]] = {kernel: {} for kernel in kernels}
    with torch.inference_mode():
        layers = {kernel: only(kernel, shapes).prepare(module, choice, _RANGE) for kernel in kernels}
        for shape in shapes:
            for kernel, elapsed in _times(module, layers, shape).items():
                taken[kernel][shape] = elapsed
    best = {shape: min(times.get(shape, math.inf) for times in taken.values()) for shape in shapes}
    forms: dict[object, list[Kernel]] = defaultdict(list)
    for kernel, times in taken.items():
        if len(times) == len(shapes):
            forms[kernel.prepare].append(kernel)
    picks = [
        {shape: _least(form, [taken[kernel][shape] for kernel in form]) for shape in shapes} for form in forms.values()
    ]
    slowdowns = [sum(taken[kernel][shape] / best[shape] for shape, kernel in pick.items()) for pick in picks]
    return Pick(kernels=_least(picks, slowdowns))


def _least(options: Sequence[T], costs: Sequence[float]) -> T:
    """Return the last of the options that cost at most ``_TIE`` times as much as the cheapest."""
    return [option for option, cost in zip(options, costs, strict=True) if cost <= _TIE * min(costs)][-1]


def _times(module: nn.Module, layers: Mapping[Kernel, PackedLayer], shape: Shape) -> dict[Kernel, float]:
    """Return kernel -> seconds per pass at one shape, comparable within the call; wrong kernels are absent."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp_(_RANGE.low, _RANGE.high)
    found: dict[Kernel, float] = {}
    reference = None
    for kernel, layer in layers.items():
        try:
            output = layer(x)
        except (RuntimeError, NotImplementedError):
            continue  # this build of PyTorch may lack the kernel
        reference = output if reference is None else reference
        if (output - reference).norm() <= _LARGEST_ERROR * reference.norm():
            found[kernel] = min(_seconds(layer, x) for _ in range(2))
    hopeful = [kernel for kernel in found if found[kernel] < _HOPELESS * min(found.values())]
    if len(hopeful) == 1:
        return found
    rounds: list[list[float]] = []
    deadline = time.perf_counter() + _LONGEST_S
    while len(rounds) < _ROUNDS and (len(rounds) < _FEWEST_ROUNDS or time.perf_counter() < deadline):
        module(x)  # fills the caches as neighbouring layers would
        rounds.append([_seconds(layers[kernel], x) for kernel in hopeful])
    # Use shares of a round, because a disturbance slows down all passes of a round.
    shares = [[elapsed / sum(of_round) for elapsed in of_round] for of_round in rounds]
    whole = sum(found[kernel] for kernel in hopeful)
    return found | {
        kernel: whole * statistics.median(share)
        for kernel, share in zip(hopeful, zip(*shares, strict=True), strict=True)
    }


def _seconds(layer: PackedLayer, x: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start
