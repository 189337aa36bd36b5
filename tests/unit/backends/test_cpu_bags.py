"""Bags of embeddings: every form that ``nn.EmbeddingBag`` takes, from rows in few bits."""

from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from workers.backends.cpu.backend import CpuBackend

BACKEND = CpuBackend()
INDICES = torch.tensor([4, 1, 1, 9, 0, 3, 7])
OFFSETS = torch.tensor([0, 3, 3, 5])  # the second bag is empty
ENDED = torch.tensor([0, 3, 3, 5, 7])
WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.0, 3.0, 1.0])
FORMS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "sum": ({"mode": "sum"}, (INDICES, OFFSETS)),
    "mean": ({"mode": "mean"}, (INDICES, OFFSETS)),
    "mean-of-rows": ({"mode": "mean"}, (INDICES[:6].view(2, 3),)),
    "mean-with-last-end": ({"mode": "mean", "include_last_offset": True}, (INDICES, ENDED)),
    "sum-with-last-end": ({"mode": "sum", "include_last_offset": True}, (INDICES, ENDED, WEIGHTS)),
    "weighted-sum": ({"mode": "sum"}, (INDICES, OFFSETS, WEIGHTS)),
    "weighted-sum-of-rows": ({"mode": "sum"}, (INDICES[:6].view(2, 3), None, WEIGHTS[:6].view(2, 3))),
    "short-integers": ({"mode": "mean"}, (INDICES.int(), OFFSETS.int())),
}


@pytest.mark.parametrize(("arguments", "given"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("choice", "limit"), [("bf16", 0.01), ("fp16", 0.001), ("int8_weight_only", 0.01), ("int4_weight_only", 0.15)]
)
def test_bag_of_few_bits_is_the_bag(
    arguments: dict[str, Any], given: tuple[Any, ...], choice: str, limit: float
) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 8, **arguments).eval()
    prepared = BACKEND.prepare(bag, CHOICES[choice], None)
    with torch.inference_mode():
        exact, actual = bag(*given), prepared(*given)
    assert (actual.shape, actual.dtype) == (exact.shape, exact.dtype)
    assert 0.0 < (actual - exact).norm() / exact.norm() < limit


def test_rows_of_indices_take_no_offsets() -> None:
    bag = BACKEND.prepare(nn.EmbeddingBag(10, 8), CHOICES["int8_weight_only"], None)
    with pytest.raises(ValueError, match="offsets"):
        bag(INDICES.view(1, 7), OFFSETS)
