"""Time every layer with every choice in place: inside the model, between its neighbours.

The uniform maps of all choices, full precision included, run in turn, and one pass times all layers with
one choice. A layer timed alone, over and over, would find its weights in the cache. If a uniform map
exceeds the memory for prepared layers, only some layers of each shape take the choice.
"""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from search_spaces.choice import FULL_PRECISION
from search_spaces.layer import Layer
from workers.model.prepared import PreparedModel
from workers.progress import Report, Stage, counted, silent
from workers.timing.clock import Clock, time_ms

#: Rounds over all uniform maps, and timed passes per map and round.
_ROUNDS, _PASSES = 3, 4
#: Seconds of timed passes per map; slow passes vary less, so fewer are enough.
_MAP_S = 0.5
#: A map this many times as slow as full precision is timed once per round: its layers are slow beyond doubt.
_SLOW = 3.0


def measure(
    prepared: PreparedModel,
    layers: Sequence[Layer],
    choices: Mapping[str, Sequence[str]],
    run: Callable[[], object],
    clock: Clock,
    report: Report = silent,
) -> tuple[dict[tuple[str, str], float], float]:
    """Return (layer name, choice name) -> ms inside the layer in one pass, and the ms of a full-precision pass.

    Layers of one shape share their samples, because they differ by chance only. The caller holds the device
    lock. Full precision is installed when the call returns.

    Args:
        prepared: the model and its prepared layers.
        layers: the layers to time.
        choices: layer name -> names of the choices to time, full precision included.
        run: runs one forward pass.
        clock: the clock of the device.
        report: gets every map in every round.
    """
    timer = _Timer(clock)
    nbytes = prepared.layer_bytes()
    maps: dict[str, dict[str, str]] = {}
    for choice in dict.fromkeys(choice for of_layer in choices.values() for choice in of_layer):
        able = {layer: nbytes[layer][choice] for layer, legal in choices.items() if choice in legal}
        taken = _some(layers, able, prepared.cache_bytes)
        maps[choice] = {layer: choice if layer in taken else FULL_PRECISION.name for layer in choices}
    prepared.reset()
    run()
    full_ms = time_ms(run, clock)
    rounds, passes = _schedule(full_ms / 1e3)
    passes_ms: list[float] = []
    for choice, installed in counted(list(maps.items()) * rounds, Stage.LATENCIES, report):
        prepared.apply(installed)
        first_ms = time_ms(run, clock)
        if choice == FULL_PRECISION.name:  # before hooks are registered, because they add time
            passes_ms += [time_ms(run, clock) for _ in range(passes)]
        with _timed(prepared, installed, timer):
            for _ in range(passes if first_ms <= _SLOW * full_ms else 1):
                run()
                timer.end_pass()
    prepared.reset()
    return by_shape(timer.latencies_ms(), layers, choices), statistics.median(passes_ms)


def _schedule(pass_s: float) -> tuple[int, int]:
    """Return the rounds, and the timed passes per map and round, for passes of so many seconds."""
    passes = min(_ROUNDS * _PASSES, max(1, round(_MAP_S / max(pass_s, 1e-6))))
    rounds = _ROUNDS if passes >= 2 * _ROUNDS else 1
    return rounds, passes // rounds


def _some(layers: Sequence[Layer], nbytes: Mapping[str, int], most_bytes: int) -> set[str]:
    """Return the first layers of every shape, at least one each and as many as fit into ``most_bytes``.

    Args:
        layers: the model's layers, in execution order.
        nbytes: layer name -> bytes, for the layers to choose from.
        most_bytes: bound of the total bytes.
    """
    of_shape: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for layer in layers:
        if layer.name in nbytes:
            of_shape[_shape(layer)].append(layer.name)
    taken: set[str] = set()
    for turn in itertools.zip_longest(*of_shape.values()):
        more = taken.union(name for name in turn if name is not None)
        if taken and sum(nbytes[name] for name in more) > most_bytes:
            break
        taken = more
    return taken


class _Timer:
    """Collects the milliseconds inside each module per pass, summed over its calls in the pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._started: dict[tuple[str, str], Any] = {}
        #: Entry and exit marks of each call in the current pass; read after the pass, so that a GPU need not wait.
        self._calls: list[tuple[tuple[str, str], Any, Any]] = []

    def enter(self, key: tuple[str, str]) -> None:
        self._started[key] = self._clock.mark()

    def leave(self, key: tuple[str, str]) -> None:
        self._calls.append((key, self._started[key], self._clock.mark()))

    def end_pass(self) -> None:
        of_pass: dict[tuple[str, str], float] = defaultdict(float)
        for key, start, end in self._calls:
            of_pass[key] += self._clock.between_ms(start, end)
        self._calls.clear()
        for key, elapsed_ms in of_pass.items():
            self._found[key].append(elapsed_ms)

    def latencies_ms(self) -> dict[tuple[str, str], list[float]]:
        return self._found


@contextmanager
def _timed(prepared: PreparedModel, installed: Mapping[str, str], timer: _Timer) -> Iterator[None]:
    """Report every entry into an installed layer and every exit to the timer while the context is open."""
    handles: list[Any] = []
    try:
        for key in installed.items():
            module = prepared.module(*key)
            enter, leave = _hooks(timer, key)
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(timer: _Timer, key: tuple[str, str]) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(module: nn.Module, inputs: object) -> None:
        timer.enter(key)

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        timer.leave(key)

    return enter, leave


def by_shape(
    found: Mapping[tuple[str, str], Sequence[float]], layers: Sequence[Layer], choices: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float]:
    """Return (layer, choice) -> median over all layers of the same shape, for all ``choices`` of the layers.

    A layer that did not run in the timed passes takes no time.
    """
    shapes = {layer.name: _shape(layer) for layer in layers}
    pooled: dict[tuple[object, str], list[float]] = defaultdict(list)
    for (layer, choice), latencies_ms in found.items():
        pooled[shapes[layer], choice] += latencies_ms
    return {
        (layer, choice): statistics.median(pooled[shapes[layer], choice]) if (shapes[layer], choice) in pooled else 0.0
        for layer, names in choices.items()
        for choice in names
    }


def _shape(layer: Layer) -> tuple[object, ...]:
    # The number of operations distinguishes convolutions of one shape with different strides.
    return (
        layer.kind, layer.weight_shape, layer.has_bias, layer.conv_groups, layer.input_shape, layer.calls, layer.flops
    )  # fmt: skip
