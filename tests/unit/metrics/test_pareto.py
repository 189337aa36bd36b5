"""Pareto arithmetic against naive oracles; small integer grids force ties and copies."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna._hypervolume import compute_hypervolume

from autotune.metrics.pareto import Mask, Points, hypervolume, improvements, knee, non_dominated

#: Corner of the box that hypervolumes are measured in; no two sides are equal, so that no axis is taken for another.
CORNER = np.array([4.0, 3.0, 5.0])


def naive_non_dominated(points: Points) -> Mask:
    return np.array([not any((q <= p).all() and (q < p).any() for q in points) for p in points], dtype=np.bool_)


def naive_hypervolume(points: Points, reference: Points) -> float:
    """Sum the cells of the grid spanned by all coordinates that some point dominates."""
    inside = points[(points < reference).all(axis=1)]
    edges = [np.unique(np.append(inside[:, d], reference[d])) for d in range(points.shape[1])]
    total = 0.0
    for cell in itertools.product(*(range(len(edge) - 1) for edge in edges)):
        corner = np.array([edge[i] for edge, i in zip(edges, cell, strict=True)])
        if (inside <= corner).all(axis=1).any():
            total += float(np.prod([edge[i + 1] - edge[i] for edge, i in zip(edges, cell, strict=True)]))
    return total


def grids(high: int, longest: int) -> st.SearchStrategy[Points]:
    shapes = st.tuples(st.integers(0, longest), st.sampled_from([2, 3]))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.integers(0, high).map(float)))


@given(grids(high=5, longest=40))
@settings(deadline=None)
def test_front_is_the_naive_front(points: Points) -> None:
    np.testing.assert_array_equal(non_dominated(points), naive_non_dominated(points).reshape(len(points)))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_front_of_many_points_is_the_naive_front(dimensions: int) -> None:
    points = np.random.default_rng(dimensions).random((1500, dimensions)).round(2)
    np.testing.assert_array_equal(non_dominated(points), naive_non_dominated(points))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_points_on_a_sphere_are_all_on_the_front(dimensions: int) -> None:
    directions = np.abs(np.random.default_rng(0).normal(size=(300, dimensions)))
    assert non_dominated(-directions / np.linalg.norm(directions, axis=1, keepdims=True)).all()


@given(grids(high=6, longest=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_front_does_not_depend_on_the_order(points: Points, random: object) -> None:
    order = np.random.default_rng(7).permutation(len(points))
    np.testing.assert_array_equal(non_dominated(points[order]), non_dominated(points)[order])


@given(grids(high=6, longest=30))
@settings(deadline=None)
def test_front_of_the_front_is_the_front(points: Points) -> None:
    front = points[non_dominated(points)]
    assert non_dominated(front).all()


@given(grids(high=6, longest=20))
@settings(deadline=None)
def test_a_dominated_point_changes_nothing(points: Points) -> None:
    if len(points):
        worse = np.vstack([points, points[:1] + 1.0])
        np.testing.assert_array_equal(non_dominated(worse), [*non_dominated(points), False])


@given(grids(high=5, longest=12))
@settings(deadline=None)
def test_hypervolume_is_the_naive_volume(points: Points) -> None:
    reference = CORNER[: points.shape[1]]
    assert hypervolume(points, reference) == pytest.approx(naive_hypervolume(points, reference))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_agrees_with_another_implementation(dimensions: int) -> None:
    points = np.random.default_rng(dimensions).random((200, dimensions))
    reference = np.ones(dimensions)
    assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(points, reference))


@given(grids(high=5, longest=12), st.data())
@settings(deadline=None)
def test_hypervolume_never_falls_when_a_point_is_added(points: Points, data: st.DataObject) -> None:
    reference = CORNER[: points.shape[1]]
    more = data.draw(arrays(np.float64, (1, points.shape[1]), elements=st.integers(0, 5).map(float)))
    grown = np.vstack([points, more])
    assert hypervolume(grown, reference) >= hypervolume(points, reference)
    assert hypervolume(np.vstack([grown, grown])[::-1], reference) == pytest.approx(hypervolume(grown, reference))


def test_hypervolume_of_nothing_is_zero() -> None:
    assert hypervolume(np.empty((0, 2)), np.ones(2)) == 0.0
    assert hypervolume(np.ones((3, 2)), np.ones(2)) == 0.0


def differences(candidates: Points, front: Points, reference: Points) -> list[float]:
    before = hypervolume(front, reference)
    return [hypervolume(np.vstack([front, candidate]), reference) - before for candidate in candidates]


@given(grids(high=5, longest=12), st.data())
@settings(deadline=None)
def test_improvements_are_differences_of_hypervolumes(front: Points, data: st.DataObject) -> None:
    reference = CORNER[: front.shape[1]]
    candidates = data.draw(arrays(np.float64, (4, front.shape[1]), elements=st.integers(-2, 5).map(float)))
    expected = differences(candidates, front, reference)
    np.testing.assert_allclose(improvements(candidates, front, reference), expected, atol=1e-9)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("size", [0, 1, 60])
def test_improvements_of_many_points_of_any_sign(dimensions: int, size: int) -> None:
    generator = np.random.default_rng(dimensions)
    front, candidates = generator.normal(size=(size, dimensions)), generator.normal(size=(100, dimensions))
    expected = differences(candidates, front, np.ones(dimensions))
    np.testing.assert_allclose(improvements(candidates, front, np.ones(dimensions)), expected, atol=1e-9)


def test_knee_is_where_the_front_bends_most() -> None:
    assert knee(np.array([[0.0, 10.0], [1.0, 2.0], [5.0, 1.0], [10.0, 0.0]])) == 1


def test_knee_of_a_front_without_a_bend() -> None:
    assert knee(np.array([[3.0, 4.0]])) == 0
    assert knee(np.array([[3.0, 4.0], [4.0, 3.0]])) == 0
    assert knee(np.array([[3.0, 4.0, 7.0], [3.0, 3.0, 7.0]])) == 1
    # Each is the worst in something, and the second one goes farther in sum.
    assert knee(np.array([[0.0, 1.0, 4.0], [0.0, 4.0, 0.0], [4.0, 0.0, 2.0]])) == 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0], ids=["towards the best", "straight", "away from it"])
def test_knee_of_a_symmetric_front_is_its_middle(power: float) -> None:
    along = np.linspace(0.0, 1.0, 11)
    front = np.column_stack([along, (1.0 - along**power) ** (1.0 / power)])
    assert knee(front) == {0.5: 3, 1.0: 5, 2.0: 7}[power]


@st.composite
def fronts(draw: st.DrawFn) -> Points:
    """Distinct points that do not dominate each other."""
    points = draw(grids(high=9, longest=12).filter(len))
    return np.unique(points[non_dominated(points)], axis=0)


def naive_ways(front: Points) -> list[list[Fraction]]:
    columns = [[Fraction(int(value)) for value in column] for column in front.T]
    shares = [
        [
            (max(column) - value) / (max(column) - min(column)) if len(set(column)) > 1 else Fraction(1)
            for value in column
        ]
        for column in columns
    ]
    return [list(row) for row in zip(*shares, strict=True)]


@given(fronts())
@settings(deadline=None)
def test_knee_has_the_largest_product_of_ways(front: Points) -> None:
    rows, found = naive_ways(front), knee(front)
    products = [math.prod(row) for row in rows]
    assert products[found] == max(products)
    if max(products) == 0:  # other ties are broken by rounding
        assert sum(rows[found]) == max(map(sum, rows))


@given(fronts())
@settings(deadline=None)
def test_knee_is_no_end_of_a_front_with_points_between(front: Points) -> None:
    if front.shape[1] == 2 and len(front) > 2:
        assert 0 < knee(front) < len(front) - 1


@given(fronts(), st.data())
@settings(deadline=None)
def test_knee_does_not_depend_on_units(front: Points, data: st.DataObject) -> None:
    powers = data.draw(arrays(np.int64, front.shape[1], elements=st.integers(-8, 8)))
    shifts = data.draw(arrays(np.int64, front.shape[1], elements=st.integers(-99, 99)))
    # All this is exact, so ties stay ties.
    assert knee((front + shifts) * 2.0**powers) == knee(front)
