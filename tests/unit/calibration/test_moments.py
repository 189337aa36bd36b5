"""Second moments of inputs: what a sketch keeps of them, and what it does not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.quantization_map import SecondMoments
from workers.calibration.moments import MomentSketch


def moments(x: torch.Tensor) -> SecondMoments:
    sketch = MomentSketch(x.shape[-1])
    sketch.add(x)
    return sketch.moments()


def directions(found: SecondMoments) -> torch.Tensor:
    """Return the directions, shape ``(directions, channels)``; the squares of their sum make up the moments."""
    rows = np.frombuffer(found.integers(), dtype=np.int8).reshape(len(found.scales), -1)
    return torch.from_numpy(rows * np.array(found.scales)[:, None])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [48, 200], ids=["exact", "sketched"])
def test_at_most_thirty_two_directions_are_kept_the_largest_first(channels: int) -> None:
    x = normal(4096, channels) * torch.logspace(0.0, -1.0, channels)
    found = directions(moments(x))
    assert found.shape == (32, channels)
    lengths = found.norm(dim=1)
    assert (lengths[:-1] >= 0.99 * lengths[1:]).all()
    # Channels are almost independent, so the largest direction is that of the largest channel.
    assert float(lengths[0]) == pytest.approx(float(x[:, 0].square().mean().sqrt()), rel=0.05)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_inputs_of_few_directions_are_kept_whole(rank: int) -> None:
    x = normal(512, rank) @ normal(rank, 96, seed=1)
    found, exact = directions(moments(x)), x.double().T @ x.double() / len(x)
    assert len(found) == rank, "rounding errors are no directions"
    assert float((found.T @ found - exact).norm() / exact.norm()) < 0.02


@settings(deadline=None, max_examples=20)
@given(st.integers(-20, 20), st.integers(0, 100))
def test_moments_do_not_depend_on_the_unit(power: int, seed: int) -> None:
    x = normal(64, 40, seed=seed)
    one, other = moments(x), moments(x * 2.0**power)  # exact in fp32
    assert other.squares == pytest.approx([4.0**power * square for square in one.squares], rel=1e-3)
    assert other.scales == pytest.approx([2.0**power * scale for scale in one.scales], rel=1e-3)


def test_every_direction_uses_the_bytes_to_the_full() -> None:
    found = moments(normal(512, 64))
    rows = np.frombuffer(found.integers(), dtype=np.int8).reshape(len(found.scales), -1).astype(int)
    assert (np.abs(rows).max(axis=1) == 127).all()
