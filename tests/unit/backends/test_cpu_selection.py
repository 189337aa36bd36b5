"""Which of several kernels is taken, with kernels whose time and result are made up."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES, LayerChoice
from search_spaces.discovery import discover
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu import backend
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import Kernel
from workers.backends.cpu.selection import Pick, fastest, named, only, rows_of
from workers.backends.packed import PackedLayer
from workers.model.prepared import PreparedModel

LINEAR = nn.Linear(8, 4)
FEW, MANY = (1, 8), (64, 8)


@dataclass(eq=False)
class MadeUp:
    """Prepares layers that take so many ms for few and for many rows."""

    few_ms: float
    many_ms: float
    off: float = 0.0
    fails: bool = False
    prepared: int = field(default=0)

    def __call__(self, module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> PackedLayer:
        self.prepared += 1
        return Sleeping(module, self)


class Sleeping(PackedLayer):
    packed_bytes = 0

    def __init__(self, module: nn.Module, how: MadeUp) -> None:
        super().__init__(module)
        self._module, self._how = [module], how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._how.fails:
            raise NotImplementedError("there is no such operator here")
        time.sleep((self._how.few_ms if len(x) == 1 else self._how.many_ms) / 1e3)
        result: torch.Tensor = self._module[0](x) * (1.0 + self._how.off)
        return result


def kernel(name: str, how: MadeUp) -> Kernel:
    return Kernel(name, (LayerKind.LINEAR,), ("int8_dynamic",), how)


def pick(kernels: Sequence[Kernel], *shapes: tuple[int, ...]) -> Pick:
    return fastest(LINEAR, CHOICES["int8_dynamic"], kernels, shapes)


def test_the_fastest_at_the_real_shape_is_taken() -> None:
    kernels = [kernel("a", MadeUp(1, 9)), kernel("b", MadeUp(3, 3))]
    assert pick(kernels, FEW).name == "a"
    assert pick(kernels, MANY).name == "b"


def test_shapes_count_alike_however_long_they_take() -> None:
    # At few rows "a" takes a quarter; at many "b" takes two thirds.
    kernels = [kernel("a", MadeUp(1, 9)), kernel("b", MadeUp(4, 6))]
    assert pick(kernels, FEW, MANY).name == "a"


def test_kernels_of_the_same_packed_weights_share_a_layer() -> None:
    class Following(Sleeping):
        def follow(self, plan: dict[int, str]) -> None:
            times = {"a": (1, 20), "b": (20, 1)}
            few, many = (times[plan.get(rows, plan[min(plan)])] for rows in (1, 64))
            self._how = MadeUp(few[0], many[1])

    def prepare(module: nn.Module, choice: LayerChoice, input_range: ActivationRange | None) -> PackedLayer:
        return Following(module, MadeUp(0, 0))

    shared = [Kernel(name, (LayerKind.LINEAR,), ("int8_weight_only",), prepare) for name in ("a", "b")]
    found = pick([*shared, kernel("c", MadeUp(3, 3))], FEW, MANY)
    assert {rows_of(shape): taken.name for shape, taken in found.kernels.items()} == {1: "a", 64: "b"}
    assert found.name == "a at 1 row, b at 64 rows"


def test_of_equals_the_last_is_taken() -> None:
    kernels = [kernel(name, MadeUp(ms, ms)) for name, ms in (("a", 10.0), ("b", 10.2), ("c", 12.0))]
    assert pick(kernels, FEW).name == "b"


def test_a_kernel_that_is_wrong_or_missing_is_not_taken() -> None:
    kernels = [
        kernel("right", MadeUp(5, 5)),
        kernel("wrong", MadeUp(1, 1, off=0.1)),
        kernel("no", MadeUp(0, 0, fails=True)),
    ]
    assert pick(kernels, FEW).name == "right"


def test_a_shape_is_timed_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [MadeUp(1, 1), MadeUp(30, 30)]
    monkeypatch.setattr(backend, "KERNELS", tuple(kernel(str(number), how) for number, how in enumerate(ways)))
    monkeypatch.setattr(backend, "_timed", {})
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    layers = discover(model, lambda m: m(torch.zeros(FEW)))
    prepared = PreparedModel(model, layers, CpuBackend(), {})
    assert {names["int8_dynamic"] for names in prepared.kernels().values()} == {"0"}
    assert [how.prepared for how in ways] == [2, 2], "once for each of two shapes"
    prepared.apply(dict.fromkeys(("0", "1", "2"), "int8_dynamic"))
    assert [how.prepared for how in ways] == [2 + 3, 2]


def test_own_shapes_count_if_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = (kernel("few", MadeUp(1, 9)), kernel("many", MadeUp(9, 1)))
    monkeypatch.setattr(backend, "KERNELS", kernels)
    monkeypatch.setattr(backend, "_timed", {})
    choice = CHOICES["int8_dynamic"]
    assert [CpuBackend().kernel(LINEAR, choice, [shape]) for shape in (FEW, MANY)] == ["few", "many"]
    prepared = CpuBackend().prepare(LINEAR, choice, None, [MANY])
    assert isinstance(prepared, PackedLayer)
    assert prepared.kernel == "many"


def test_a_known_kernel_is_taken_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = (kernel("few", MadeUp(1, 9)), kernel("many", MadeUp(9, 1)))
    monkeypatch.setattr(backend, "KERNELS", kernels)
    monkeypatch.setattr(backend, "_timed", {})
    choice = CHOICES["int8_dynamic"]
    assert CpuBackend().kernel(LINEAR, choice, [MANY], "few") == "few"
    prepared = CpuBackend().prepare(LINEAR, choice, None, [MANY], "few")
    assert isinstance(prepared, PackedLayer)
    assert prepared.kernel == "few"
    assert backend._timed == {}
    assert CpuBackend().kernel(LINEAR, choice, [MANY], "gone") == "many"


def test_a_pick_is_found_again_by_its_name() -> None:
    how = MadeUp(0, 0)
    alone, one, other = kernel("c", MadeUp(0, 0)), kernel("a", how), kernel("b", how)
    for pick in (only(alone, [FEW, MANY]), Pick(kernels={FEW: one, MANY: other})):
        assert named(pick.name, [alone, one, other], [FEW, MANY]) == pick
    assert named("a at 1 row, b at 64 rows", [one, other], [FEW, (7, 8)]) is None
    assert named("a at 1 row, c at 64 rows", [alone, one, other], [FEW, MANY]) is None, "their weights differ"
