"""The multiple-choice knapsack against all maps of small instances."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autotune.metrics.pareto import Points, hypervolume, non_dominated
from autotune.planner.knapsack import Costs, Maps, cheapest_for_each_budget, weighted, with_few_changes

INTEGERS = st.integers(-5, 5).map(float)


@st.composite
def instances(draw: st.DrawFn, elements: st.SearchStrategy[float] = INTEGERS, costs: int = 2) -> Costs:
    """Draw ``costs`` tables of up to four groups and choices; every group has some choice, not always the first."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    tables = draw(arrays(np.float64, (costs, *shape), elements=elements))
    illegal = draw(arrays(np.bool_, shape))
    illegal[np.arange(shape[0]), draw(arrays(np.intp, shape[0], elements=st.integers(0, shape[1] - 1)))] = False
    return np.where(illegal, np.inf, tables)


def all_maps(tables: Costs) -> Maps:
    legal = [np.flatnonzero(np.isfinite(row)) for row in tables[0]]
    return np.array(list(itertools.product(*legal)), dtype=np.intp)


def totals(tables: Costs, maps: Maps) -> Points:
    """Return the summed costs of maps, shape ``(maps, costs)``."""
    return np.asarray(tables[:, np.arange(tables.shape[1]), maps].sum(axis=2).T)


def front(points: Points) -> Points:
    return np.unique(points[non_dominated(points)], axis=0)


@given(instances())
@settings(deadline=None)
def test_front_of_whole_costs_is_exact_and_its_maps_are_legal(tables: Costs) -> None:
    found = totals(tables, cheapest_for_each_budget(*tables))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(front(found), front(totals(tables, all_maps(tables))))


@given(instances())
@settings(deadline=None)
def test_larger_budgets_buy_cheaper_maps(tables: Costs) -> None:
    assert (np.diff(totals(tables, cheapest_for_each_budget(*tables))[:, 0]) < 0).all()


@given(instances(st.floats(-1.0, 1.0)))
@settings(deadline=None)
def test_rounding_of_real_costs_loses_next_to_nothing(tables: Costs) -> None:
    every = totals(tables, all_maps(tables))
    spread = np.where(np.ptp(every, axis=0) > 1e-9, np.ptp(every, axis=0), 1.0)
    found, true = (
        hypervolume((points - every.min(axis=0)) / spread, np.full(2, 1.1))
        for points in (totals(tables, cheapest_for_each_budget(*tables)), every)
    )
    assert found >= true - 0.005


@pytest.mark.parametrize(
    ("cost", "spent", "expected"),
    [
        ([[3.0]], [[-2.0]], [[0]]),
        ([[0.0, 1.0]], [[5e-324, 0.0]], [[1], [0]]),  # the smallest difference there is
        ([[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]], [[2], [1], [0]]),
        ([[2.0, 1.0], [5.0, 9.0]], [[7.0, 7.0], [7.0, 7.0]], [[1, 0]]),
        ([[np.inf, 1.0], [5.0, np.inf]], [[np.inf, 7.0], [0.0, np.inf]], [[1, 0]]),
    ],
    ids=["one map", "smallest difference", "one group", "all spend the same", "one legal choice each"],
)
def test_small_instances(cost: list[list[float]], spent: list[list[float]], expected: list[list[int]]) -> None:
    assert cheapest_for_each_budget(np.array(cost), np.array(spent)).tolist() == expected


def test_many_groups_reach_both_ends_of_the_budget() -> None:
    groups = 1500  # each spends less than a step of the budget, and all are rounded up
    found = cheapest_for_each_budget(np.tile([1.0, 0.0], (groups, 1)), np.tile([-1.0, 0.0], (groups, 1)))
    assert not found[0].any()
    assert found[-1].all()


@given(instances(costs=3), arrays(np.float64, (5, 3), elements=st.integers(0, 4).map(float)))
@settings(deadline=None)
def test_every_weighting_has_its_minimum_and_no_map_comes_twice(tables: Costs, weights: Points) -> None:
    maps = weighted(tables, weights)
    found, every = (weights @ totals(tables, some).T for some in (maps, all_maps(tables)))
    np.testing.assert_array_equal(found.min(axis=1), every.min(axis=1))
    assert (found == every.min(axis=1, keepdims=True)).any(axis=0).all()  # and nothing else is returned
    assert len(np.unique(maps, axis=0)) == len(maps)


@given(
    instances(costs=3),
    arrays(np.intp, (4, 4), elements=st.integers(0, 2)),
    arrays(np.float64, 3, elements=st.integers(0, 4).map(float)),
)
@settings(deadline=None)
def test_maps_with_few_changes_are_the_cheapest(tables: Costs, kinds: Maps, penalties: Points) -> None:
    kinds = kinds[: tables.shape[1], : tables.shape[2]]

    def totals_with_changes(maps: Maps) -> Points:
        changes = (np.diff(kinds[np.arange(len(kinds)), maps], axis=1) != 0).sum(axis=1)
        return totals(tables, maps) + changes[:, None] * penalties

    found = totals_with_changes(with_few_changes(tables, kinds, penalties))
    np.testing.assert_array_equal(found.min(axis=0), totals_with_changes(all_maps(tables)).min(axis=0))
