"""Exact Pareto arithmetic in two and three objectives, all minimised; numpy only.

A point dominates another if it is at least as good in every objective and better in one. Equal
points do not dominate each other, so every copy of a non-dominated point is kept.
"""

import itertools

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def non_dominated(points: Points) -> Mask:
    """Return a mask of the points that no other point dominates.

    After a lexicographic sort, only earlier points can dominate later ones (Kung, Luccio and
    Preparata, 1975). Two objectives need one sweep, O(n log n). With three, each point is compared with
    the front found so far, O(n f) for a front of f points.

    Args:
        points: shape ``(n, 2)`` or ``(n, 3)``, finite.

    Returns:
        Mask of shape ``(n,)``.
    """
    order = np.lexsort(points.T[::-1])
    ranked = points[order]
    keep = _sweep(ranked) if points.shape[1] == 2 else _filter(ranked)
    mask = np.zeros(len(points), dtype=np.bool_)
    mask[order[keep]] = True
    return mask


def _sweep(ranked: Points) -> Mask:
    """Return a mask of the points that improve the second objective, and their copies; sorted by the first one."""
    second = ranked[:, 1]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
    keep = second < best_before
    # A copy directly follows the point it equals, and is kept if that point is.
    copies = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)])
    first_of_run = np.maximum.accumulate(np.where(copies, 0, np.arange(len(ranked))))
    return keep[first_of_run] if len(ranked) else keep


def _filter(ranked: Points) -> Mask:
    front = np.empty_like(ranked)
    size = 0
    keep = np.zeros(len(ranked), dtype=np.bool_)
    for index, point in enumerate(ranked):
        better = (front[:size] <= point).all(axis=1) & (front[:size] < point).any(axis=1)
        if not better.any():
            front[size] = point
            size += 1
            keep[index] = True
    return keep


def hypervolume(points: Points, reference: Points) -> float:
    """Return the volume that ``points`` dominate within the box bounded by ``reference``.

    Points that are not better than the reference in every objective contribute nothing. With two
    objectives this is the area of a staircase. Three are swept along the last one: each slab is a
    staircase of the points at or below it (While et al., IEEE TEC 16(1), 2012, describe the general case).

    Args:
        points: shape ``(n, 2)`` or ``(n, 3)``.
        reference: shape ``(2,)`` or ``(3,)``.
    """
    inside = points[(points < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if points.shape[1] == 2:
        return _area(inside, reference)
    levels = np.unique(inside[:, 2])
    tops = np.append(levels[1:], reference[2])
    slabs = (
        (top - level) * _area(inside[inside[:, 2] <= level, :2], reference[:2])
        for level, top in zip(levels, tops, strict=True)
    )
    return float(sum(slabs))


def _area(points: Points, reference: Points) -> float:
    front = points[non_dominated(points)]
    stairs = np.unique(front, axis=0)  # ascending in the first objective, so descending in the second
    right = np.append(stairs[1:, 0], reference[0])
    return float(np.sum((right - stairs[:, 0]) * (reference[1] - stairs[:, 1])))


def improvements(candidates: Points, front: Points, reference: Points) -> npt.NDArray[np.float64]:
    """Return by how much each candidate alone would raise the hypervolume of ``front``, shape ``(n,)``.

    The region that ``front`` does not dominate is cut into boxes once. A candidate gains the volume
    that it dominates in each box (Lacour, Klamroth and Fonseca, 2017, describe the decomposition).

    Args:
        candidates: shape ``(n, 2)`` or ``(n, 3)``.
        front: any points, shape ``(m, 2)`` or ``(m, 3)``.
        reference: shape ``(2,)`` or ``(3,)``.
    """
    inside = front[(front < reference).all(axis=1)]
    lower, upper = _strips(inside, reference) if len(reference) == 2 else _slabs(inside, reference)
    gained = np.ones((len(candidates), len(lower)))
    for axis in range(len(reference)):
        edge = np.maximum(lower[:, axis], candidates[:, axis, None])
        gained *= np.maximum(upper[:, axis] - edge, 0.0)
    return np.asarray(gained.sum(axis=1))


def _strips(front: Points, reference: Points) -> tuple[Points, Points]:
    """Return lower and upper corners of the vertical strips that ``front`` does not dominate."""
    stairs = np.unique(front[non_dominated(front)], axis=0)
    edges = np.concatenate([[-np.inf], stairs[:, 0], [reference[0]]])
    tops = np.concatenate([[reference[1]], stairs[:, 1]])
    floor = np.full(len(tops), -np.inf)
    return np.column_stack([edges[:-1], floor]), np.column_stack([edges[1:], tops])


def _slabs(front: Points, reference: Points) -> tuple[Points, Points]:
    """Return lower and upper corners of the strips in each slab between two values of the last objective."""
    levels = np.concatenate([[-np.inf], np.unique(front[:, 2]), [reference[2]]])
    lower, upper = [], []
    for bottom, top in itertools.pairwise(levels):
        below, above = _strips(front[front[:, 2] <= bottom, :2], reference[:2])
        lower.append(np.column_stack([below, np.full(len(below), bottom)]))
        upper.append(np.column_stack([above, np.full(len(above), top)]))
    return np.concatenate(lower), np.concatenate(upper)


def knee(points: Points) -> int:
    """Return the index of the point that dominates the largest part of the box between the front's worst and best.

    This point has the largest product of ``ways`` (Nash, 1950, "The bargaining problem"). If the front bends towards
    the best values, it is near the point farthest below the plane through the ends (Das, 1999, "On characterizing the
    knee of the Pareto curve"). If the front bends away, the farthest point would be an end; this one is not. If every
    point is the worst in some objective, the largest sum decides. The first of equally good points wins.

    Args:
        points: a non-dominated front, shape ``(n, d)``, ``n >= 1``.
    """
    shares = ways(points)
    return int(np.lexsort((-shares.sum(axis=1), -shares.prod(axis=1)))[0])


def ways(points: Points) -> Points:
    """Return each point's distance from the worst value of each objective, as a share of the spread over ``points``.

    Shape ``(n, d)``; 1 in an objective without spread.
    """
    spread = np.ptp(points, axis=0)
    return np.where(spread > 0, (points.max(axis=0) - points) / np.where(spread > 0, spread, 1.0), 1.0)
