"""The multiple-choice knapsack: one choice per group, two or three additive costs.

Cost arrays have shape ``(groups, choices)``; the cost of a choice that a group does not have is infinite.
Maps are arrays of choice numbers, shape ``(maps, groups)``.
"""

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]
Maps = npt.NDArray[np.intp]

#: Steps into which the range of the budget is divided.
_BINS = 1024


def cheapest_for_each_budget(cost: Costs, spent: Costs) -> Maps:
    """Return the map of least ``cost`` for every budget at which a larger budget lowers the cost.

    Dynamic programming over the budget (Dudzinski and Walukiewicz, 1987): exact, except that each
    group's spending is rounded to 1/1024 of the range between the lowest and the highest spending. It
    also finds maps that are optimal for no weighting of the two costs.

    Args:
        cost: to be minimised, shape ``(groups, choices)``.
        spent: what counts against the budget, of any sign; same shape.
    """
    steps = _steps(spent)
    best = np.full(_BINS + 1 + len(cost), np.inf)
    best[0] = 0.0
    taken = np.zeros((len(cost), len(best)), dtype=np.intp)
    for group, (costs, of_group) in enumerate(zip(cost, steps, strict=True)):
        first, *others = _efficient(costs, of_group)
        extended = best + costs[first]
        taken[group] = first
        for choice in others:
            step = of_group[choice]
            total = best[: len(best) - step] + costs[choice]
            better = total < extended[step:]
            np.copyto(extended[step:], total, where=better)
            np.copyto(taken[group, step:], choice, where=better)
        best = extended
    before = np.concatenate([[np.inf], np.minimum.accumulate(best)[:-1]])
    budgets = np.flatnonzero(best < before)
    return _backtrack(taken, steps, budgets)


def _steps(spent: Costs) -> npt.NDArray[np.intp]:
    """Return what each choice spends above the minimum of its group, in steps of the budget."""
    finite = np.isfinite(spent)
    beyond = np.where(finite, spent - np.where(finite, spent, np.inf).min(axis=1, keepdims=True), 0.0)
    whole = beyond.max(axis=1).sum()
    return np.asarray(np.rint(_BINS * (beyond / whole if whole > 0 else beyond)), dtype=np.intp)


def _efficient(costs: Costs, steps: npt.NDArray[np.intp]) -> list[int]:
    """Return the choices of a group that cost less than every choice that spends no more, by ascending spending."""
    kept: list[int] = []
    for choice in np.lexsort((costs, steps)).tolist():
        if costs[choice] < (costs[kept[-1]] if kept else np.inf):
            kept.append(choice)
    return kept


def _backtrack(taken: npt.NDArray[np.intp], steps: npt.NDArray[np.intp], budgets: npt.NDArray[np.intp]) -> Maps:
    maps = np.empty((len(budgets), len(taken)), dtype=np.intp)
    left = budgets.copy()
    for group in range(len(taken) - 1, -1, -1):
        maps[:, group] = taken[group, left]
        left -= steps[group, maps[:, group]]
    return maps


def weighted(costs: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> Maps:
    """Return the map of least weighted cost per weighting, without duplicates (a Lagrangian relaxation).

    Args:
        costs: shape ``(costs, groups, choices)``.
        weights: shape ``(weightings, costs)``.
    """
    legal = np.isfinite(costs[0])
    total = np.tensordot(weights, np.where(legal, costs, 0.0), axes=1)
    return np.unique(np.where(legal, total, np.inf).argmin(axis=2), axis=0)


def with_few_changes(costs: npt.NDArray[np.float64], kinds: Maps, penalties: npt.NDArray[np.float64]) -> Maps:
    """Return, per cost array, the map of least cost plus a penalty per change of kind between neighbouring groups.

    Exact, by dynamic programming along the groups (Viterbi, 1967).

    Args:
        costs: several costs of each choice, shape ``(costs, groups, choices)``.
        kinds: kind of each choice, shape ``(groups, choices)``.
        penalties: penalty of one change, per cost array, shape ``(costs,)``.

    Returns:
        Maps without duplicates.
    """
    best = costs[:, 0]
    taken = np.zeros(costs.shape, dtype=np.intp)
    for group in range(1, costs.shape[1]):
        changes = kinds[group - 1][:, None] != kinds[group]
        reached = best[:, :, None] + penalties[:, None, None] * changes
        taken[:, group] = reached.argmin(axis=1)
        best = reached.min(axis=1) + costs[:, group]
    maps = np.empty(costs.shape[:2], dtype=np.intp)
    maps[:, -1] = best.argmin(axis=1)
    for group in range(costs.shape[1] - 1, 0, -1):
        maps[:, group - 1] = taken[np.arange(len(maps)), group, maps[:, group]]
    return np.unique(maps, axis=0)
