"""Ties: maps whose speed cannot be told apart from that of a map with better quality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.metrics.ties import qualities, tied


def ties(*maps: tuple[float, float, float]) -> list[bool]:
    """Which of several maps, each given by low, high and a quality to minimise, are ties."""
    low, high, quality = (np.array(column) for column in zip(*maps, strict=True))
    found: list[bool] = tied(low, high, quality[:, None]).tolist()
    return found


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([(0.5, 0.6, 2.0), (0.8, 0.9, 1.0)], [False, False]),
        ([(0.5, 0.8, 2.0), (0.8, 0.9, 1.0)], [True, False]),
        ([(0.5, 0.8, 1.0), (0.8, 0.9, 1.0)], [False, False]),
        ([(0.9, 1.02, 2.0), (1.0, 1.0, 0.0)], [True, False]),
        ([(0.5, 0.7, 3.0), (0.6, 0.9, 2.0), (0.85, 0.95, 1.0)], [True, True, False]),
        ([(0.5, 0.9, 1.0)], [False]),
    ],
    ids=["apart", "touching", "equal quality", "full precision", "in a row", "alone"],
)
def test_a_tie_overlaps_with_a_map_of_better_quality(
    maps: list[tuple[float, float, float]], expected: list[bool]
) -> None:
    assert ties(*maps) == expected


def test_better_means_no_worse_in_any_quality() -> None:
    low, high = np.array([0.5, 0.55]), np.array([0.7, 0.75])
    assert tied(low, high, np.array([[2.0, 1.0], [1.0, 2.0]])).tolist() == [False, False]
    assert tied(low, high, np.array([[2.0, 2.0], [1.0, 2.0]])).tolist() == [True, False]


@given(st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=8))
def test_the_map_of_best_quality_is_never_a_tie(maps: list[tuple[float, float, float]]) -> None:
    found = ties(*((low, low + width, quality) for low, width, quality in maps))
    assert not found[min(range(len(maps)), key=lambda i: maps[i][2])]


def test_quality_is_that_of_the_objectives() -> None:
    assert qualities(["latency_p50_ms", "accuracy", "weight_memory_mib"]) == ("accuracy",)
    assert qualities(["latency_p50_ms", "weight_memory_mib"]) == ("divergence",)
