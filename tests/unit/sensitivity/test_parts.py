"""Parts of calibration batches."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from workers.sensitivity.parts import random_parts


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
