"""Layers timed inside their model: every one, by shape, with nothing left behind."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.discovery import discover
from search_spaces.layer import Layer
from workers.backends.cpu.backend import CpuBackend
from workers.model.prepared import PreparedModel
from workers.timing import layer_latency
from workers.timing.clock import HOST_CLOCK, Clock

X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
CHOICES = ("fp32", "int8_weight_only", "int4_weight_only")
#: Layer -> the choices timed; ``odd`` cannot take int4.
LEGAL = {"first": CHOICES, "second": CHOICES, "wide": CHOICES, "odd": CHOICES[:2]}

SLOW_MS = 5.0

Key = tuple[str, str]


class Model(nn.Module):
    """Two layers of one shape, two of others; ``second`` runs twice if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.wide, self.odd = nn.Linear(32, 64), nn.Linear(64, 10)
        self.repeats = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(self.repeats):
            x = self.second(x)
        outputs: torch.Tensor = self.odd(self.wide(x))
        return outputs


class SlowClock:
    """Time passes in slow layers, and between two marks a little more every time: no two layers take the same."""

    def __init__(self) -> None:
        self._now_ms, self._marks = 0.0, 0

    def mark(self) -> float:
        self._marks += 1
        self._now_ms += 1e-6 * self._marks
        return self._now_ms

    def between_ms(self, start: float, end: float) -> float:
        return end - start

    def slow_down(self, *_: object) -> None:
        self._now_ms += SLOW_MS


CLOCK = SlowClock()


class SlowBackend(CpuBackend):
    """Lets time pass inside the layers prepared with one choice."""

    def prepare(self, module: nn.Module, choice: LayerChoice, *arguments: Any) -> nn.Module:
        prepared = super().prepare(module, choice, *arguments)
        if choice.name == "int4_weight_only":
            prepared.register_forward_hook(CLOCK.slow_down)
        return prepared


def prepared_model(
    model: nn.Module | None = None, *, cache_bytes: int | None = None
) -> tuple[PreparedModel, tuple[Layer, ...]]:
    torch.manual_seed(0)
    model = (model or Model()).eval()
    layers = discover(model, lambda m: m(X))
    return PreparedModel(model, layers, SlowBackend(), {}, cache_bytes=cache_bytes), layers


def timed(
    prepared: PreparedModel,
    layers: tuple[Layer, ...],
    *,
    legal: Mapping[str, tuple[str, ...]] = LEGAL,
    run: Callable[[], object] | None = None,
    clock: Clock = CLOCK,
) -> tuple[dict[Key, float], float]:
    with torch.inference_mode():
        return layer_latency.measure(prepared, layers, legal, run or (lambda: prepared.model(X)), clock)


EVERY = {(layer, choice) for layer, names in LEGAL.items() for choice in names}


def test_every_layer_and_choice_is_timed() -> None:
    latency_ms, pass_ms = timed(*prepared_model(), clock=HOST_CLOCK)
    assert set(latency_ms) == EVERY
    assert all(elapsed > 0.0 for elapsed in latency_ms.values())
    assert pass_ms > 0.0


def test_a_layer_that_does_not_run_takes_no_time() -> None:
    prepared, layers = prepared_model()
    model = prepared.model
    assert isinstance(model, Model)
    latency_ms, _ = timed(prepared, layers, run=lambda: model.first(X))
    assert set(latency_ms) == EVERY
    assert latency_ms["wide", "fp32"] == latency_ms["odd", "int8_weight_only"] == 0.0
    assert latency_ms["first", "fp32"] > 0.0


def test_layers_of_one_shape_share_a_value() -> None:
    latency_ms, _ = timed(*prepared_model())
    for choice in CHOICES:
        assert latency_ms["first", choice] == latency_ms["second", choice]
    assert len({latency_ms[layer, "fp32"] for layer in LEGAL}) == 3


def test_convolutions_of_one_shape_differ_by_their_strides() -> None:
    class Strides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.every, self.second = nn.Conv1d(32, 32, 3, padding=1), nn.Conv1d(32, 32, 3, padding=1, stride=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(-1).expand(-1, -1, 512)
            outputs: torch.Tensor = self.every(x).mean(dim=-1) + self.second(x).mean(dim=-1)
            return outputs

    latency_ms, _ = timed(*prepared_model(Strides()), legal=dict.fromkeys(("every", "second"), ("fp32",)))
    assert latency_ms["every", "fp32"] != latency_ms["second", "fp32"]


def test_slow_choice_is_slow_where_it_is_and_nowhere_else() -> None:
    latency_ms, pass_ms = timed(*prepared_model())
    for (layer, choice), elapsed in latency_ms.items():
        assert (elapsed >= SLOW_MS) == (choice == "int4_weight_only"), (layer, choice)
    assert pass_ms < SLOW_MS


def test_calls_of_one_pass_are_added_up() -> None:
    model = Model()
    model.repeats = 3
    latency_ms, _ = timed(*prepared_model(model))
    assert latency_ms["second", "int4_weight_only"] >= 3 * SLOW_MS
    assert latency_ms["second", "int4_weight_only"] > 2 * latency_ms["first", "int4_weight_only"]


def test_first_pass_after_a_change_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = LayerClock()
    monkeypatch.setattr(layer_latency, "_ROUNDS", 1)
    monkeypatch.setattr(layer_latency, "_PASSES", 1)
    prepared, layers = prepared_model()
    for key in EVERY:
        prepared.module(*key).register_forward_hook(clock.tick)
    latency_ms, pass_ms = timed(prepared, layers, run=lambda: clock.run(prepared.model), clock=clock)
    assert latency_ms == dict.fromkeys(EVERY, 1.0)
    assert pass_ms == 4.0


class LayerClock:
    """Every layer takes 1 ms, and 1,000 ms in the first pass after a change of the map."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._installed: list[nn.Module] = []
        self._cold = True

    def run(self, model: nn.Module) -> None:
        installed = list(model.children())
        self._cold, self._installed = installed != self._installed, installed
        model(X)

    def mark(self) -> float:
        return self.now_ms

    def between_ms(self, start: float, end: float) -> float:
        return end - start

    def tick(self, *_: object) -> None:
        self.now_ms += 1000.0 if self._cold else 1.0


def test_nothing_is_left_behind() -> None:
    prepared, layers = prepared_model()
    prepared.apply({"first": "int8_weight_only"})
    before = dict(prepared.model.named_modules()) | {"first": prepared.module("first", FULL_PRECISION.name)}
    timed(prepared, layers)
    assert dict(prepared.model.named_modules()) == before
    assert not any(hooks(prepared))


def hooks(prepared: PreparedModel) -> list[bool]:
    """Whether the timer's hooks are on each module; a slow one has a hook of its own."""
    own = {"int4_weight_only": 1}
    return [
        bool(module._forward_pre_hooks) or len(module._forward_hooks) != own.get(choice, 0)
        for choice, module in ((choice, prepared.module(layer, choice)) for layer, choice in EVERY)
    ]


def test_pass_that_raises_leaves_no_hooks() -> None:
    prepared, layers = prepared_model()
    passes = iter(range(9))

    def run() -> None:
        prepared.model(X)
        if next(passes) == 7:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        timed(prepared, layers, run=run)
    assert not any(hooks(prepared))


@pytest.mark.parametrize(("cache_bytes", "together"), [(0, False), (5_000, False), (6_000, True)])
def test_maps_larger_than_the_cache_are_timed_by_some_layers_of_each_shape(cache_bytes: int, together: bool) -> None:
    prepared, layers = prepared_model(cache_bytes=cache_bytes)
    installed: list[dict[str, str]] = []

    def run() -> None:
        installed.append(prepared.installed)
        prepared.model(X)

    latency_ms, _ = timed(prepared, layers, run=run)
    assert set(latency_ms) == EVERY
    assert latency_ms["first", "int4_weight_only"] == latency_ms["second", "int4_weight_only"] >= SLOW_MS
    # All four have 5.6 kB in int8, and 4.3 without the second.
    int8 = [{layer for layer, choice in names.items() if choice == "int8_weight_only"} for names in installed]
    assert max(int8, key=len) == {"first", "wide", "odd"} | ({"second"} if together else set())
