"""Parts of batches: random ones of calibration data, and small ones of a batch."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from workers.sensitivity.parts import length_of, random_parts, small_part


class Pair(NamedTuple):
    x: torch.Tensor
    mask: torch.Tensor


class Sums:
    """Returns one output per row of the first tensor."""

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        first: torch.Tensor = batch["x"] if isinstance(batch, dict) else batch[0]
        if len(first) < self.least:
            raise ValueError("too few rows")
        return first.sum(dim=1)


def parts(batches: list[Any], task: Any = None) -> list[Any]:
    return random_parts(task or Sums(), nn.Identity(), batches, 2, seed=0)


def rows(of: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + of).float().unsqueeze(1)


def test_every_sample_is_in_one_part_of_the_batches_own_type() -> None:
    found = parts([Pair(rows(5), rows(5)), Pair(rows(3, 5), rows(3, 5))])
    assert all(isinstance(part, Pair) and torch.equal(part.x, part.mask) for part in found)
    assert sorted(len(part.x) for part in found) == [1, 1, 2, 2, 2]
    assert sorted(torch.cat([part.x for part in found]).flatten().tolist()) == list(range(8))
    assert [float(part.x[0]) for part in found] != sorted(float(part.x[0]) for part in found)


@pytest.mark.parametrize(
    "batch",
    [{"x": rows(6), "table": rows(4)}, {"x": rows(6), "scale": torch.tensor(2.0)}, {"x": rows(2)}],
    ids=["tensors of other lengths", "a number", "small already"],
)
def test_what_cannot_be_cut_stays_whole(batch: dict[str, torch.Tensor]) -> None:
    assert parts([batch])[0] is batch


def test_a_task_that_wants_whole_batches_gets_them() -> None:
    batches = [Pair(rows(6), rows(6)), Pair(rows(6), rows(6))]
    found = parts(batches, Sums(least=6))
    assert {id(part) for part in found} == {id(batch) for batch in batches}


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (4, 4), (5, 5), (9, 5)])
def test_a_small_part_is_the_first_samples(size: int, expected: int) -> None:
    found = small_part(Sums(), nn.Identity(), Pair(rows(5), rows(5)), size)  # type: ignore[arg-type]
    assert torch.equal(found.x, rows(5)[:expected])


class OneOutput(Sums):
    """Returns one output whatever the number of samples, so that its outputs cannot be told apart."""

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().forward(model, batch).sum(dim=0, keepdim=True)


class InPlace(Sums):
    """Changes its input."""

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().forward(model, Pair(batch.x.add_(1.0), batch.mask))


@pytest.mark.parametrize("task", [Sums(least=5), OneOutput()])
def test_a_task_that_takes_no_part_gets_the_whole_batch(task: Any) -> None:
    batch = Pair(rows(5), rows(5))
    assert small_part(task, nn.Identity(), batch, 2) is batch


def test_trying_a_part_leaves_the_batch_as_it_was() -> None:
    batch = Pair(rows(5), rows(5))
    found = small_part(InPlace(), nn.Identity(), batch, 2)  # type: ignore[arg-type]
    assert torch.equal(batch.x, rows(5))
    assert torch.equal(found.x, rows(2))


def test_the_order_of_parts_follows_the_seed() -> None:
    batches = [Pair(rows(40), rows(40))]
    one, again, other = (
        [float(part.x[0]) for part in random_parts(Sums(), nn.Identity(), batches, 2, seed=seed)]  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert sorted(one) == [2.0 * number for number in range(20)]


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (rows(3), 3),
        ({"x": rows(3), "nested": [rows(3), (rows(3),)]}, 3),
        ({"x": rows(3), "mask": rows(2)}, None),
        ((rows(3), torch.tensor(1.0)), None),
        (torch.tensor(1.0), None),
        ("text", None),
    ],
)
def test_a_batch_has_a_length_if_all_its_tensors_share_it(batch: Any, length: int | None) -> None:
    assert length_of(batch) == length
