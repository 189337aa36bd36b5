"""Weights on the grid of a choice: what is learned must be what every kernel and exporter rounds to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.choice import CHOICES, LayerChoice
from search_spaces.quantization_map import ActivationRange, SecondMoments, Smoothing
from workers.recovery.grid import Grid

CHOICES_WITH_INTEGERS = [
    choice.with_weight_bits(bits)
    for choice in CHOICES.values()
    if choice.rounds_to_nearest or choice.is_gptq
    for bits in ((8, 7) if choice.needs_int8_products else (8,))
]
each_choice = pytest.mark.parametrize("choice", CHOICES_WITH_INTEGERS, ids=lambda c: f"{c.name}-{c.weight_bits}")


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calibrated(features: int, seed: int) -> ActivationRange:
    factors = torch.rand(features, generator=random(seed)) + 0.1
    squares = torch.rand(features, generator=random(seed + 1)) + 0.1
    return ActivationRange(
        low=-3.0,
        high=3.0,
        smoothing=Smoothing(factors=tuple(factors.tolist()), low=-1.0, high=1.0),
        moments=SecondMoments(squares=tuple(squares.tolist()), scales=(), basis=""),
    )


def changed(grid: Grid, seed: int) -> torch.Tensor:
    """Return other integers than those of the choice, except where they are fixed."""
    moves = torch.randint(-3, 4, grid.rounded.shape, generator=random(seed))
    moved = (grid.start() + moves).clamp(grid.low, grid.high)
    return torch.where(grid.fixed, grid.start(), moved)


@each_choice
@given(
    seed=st.integers(0, 2**31),
    size=st.floats(1e-6, 1e6),
    kind=st.sampled_from(["mixed", "positive", "negative", "sparse"]),
)
@settings(deadline=None, max_examples=40)
def test_weights_round_to_the_learned_integers(choice: LayerChoice, seed: int, size: float, kind: str) -> None:
    weight = size * torch.randn(6, 64, generator=random(seed))
    match kind:
        case "positive":
            weight = weight.abs()
        case "negative" if not choice.is_gptq:
            weight = -weight.abs()
        case "sparse":
            weight[:, :40] = 0.0
    known = calibrated(64, seed)
    grid = Grid.of(weight, choice, known)
    steps = changed(grid, seed)
    again = Grid.of(grid.rounding_to(steps), choice, known)
    assert torch.equal(again.rounded, steps)
    torch.testing.assert_close(again.scales, grid.scales, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(again.weight(steps), grid.weight(steps), rtol=1e-5, atol=1e-6 * size)


@each_choice
def test_what_was_learned_changes_most_weights(choice: LayerChoice) -> None:
    weight = torch.randn(6, 64, generator=random(0))
    grid = Grid.of(weight, choice, calibrated(64, 0))
    assert grid.fixed.float().mean() < 0.1
    assert ((grid.rounding_to(changed(grid, 0)) - weight).abs() > 1e-6).float().mean() > 0.5


def test_rows_that_learn_nothing_keep_their_weights() -> None:
    weight = torch.randn(6, 64, generator=random(0))
    grid = Grid.of(weight, CHOICES["int8_static"], calibrated(64, 0))
    steps = grid.rounded.clone()
    free = (~grid.fixed[0]).nonzero()[0]
    steps[0, free] -= 1
    found = grid.rounding_to(steps)
    assert torch.equal(found[1:], weight[1:])
    assert not torch.equal(found[0], weight[0])


def test_convolutions_have_a_row_per_output() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=random(0))
    choice = CHOICES["int8_static"]
    grid = Grid.of(weight, choice, calibrated(3, 0))
    steps = changed(grid, 1)
    assert grid.rows.shape == (4, 27)
    found = grid.rounding_to(steps)
    assert found.shape == weight.shape
    assert torch.equal(Grid.of(found, choice, None).rounded, steps)
