"""Maps whose speed cannot be told apart from that of a map with better quality; pure numbers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autotune.metrics.catalog import METRICS
from autotune.metrics.pareto import Points

Values = npt.NDArray[np.float64]


def qualities(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics of quality among the objectives of a job; the divergence if there is none."""
    return tuple(name for name in objectives if METRICS[name].is_quality) or ("divergence",)


def tied(low: Values, high: Values, quality: Points) -> npt.NDArray[np.bool_]:
    """Return which candidates have a latency interval that overlaps with that of a candidate of better quality.

    Args:
        low: lower bounds of the latency ratios, shape ``(n,)``; the value itself if there is no interval.
        high: upper bounds, same shape.
        quality: quality figures to minimise, shape ``(n, metrics)``. Better means no worse in all of them and better in
            one.
    """
    overlap = (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
    mine, others = quality[:, None, :], quality[None, :, :]
    better = (others <= mine).all(axis=-1) & (others < mine).any(axis=-1)
    found: npt.NDArray[np.bool_] = np.asarray(np.any(overlap & better, axis=1))
    return found
