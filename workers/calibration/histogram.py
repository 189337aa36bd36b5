"""A streaming histogram whose range grows with the data, in bounded memory."""

import math

import numpy as np
import numpy.typing as npt

#: Bins of a histogram; even, so that doubling the range merges whole bins.
BINS = 2048

Counts = npt.NDArray[np.int64]


class RangeHistogram:
    """Counts of values in ``BINS`` equal bins over ``[-limit, limit]``, and the exact extremes.

    The limit is a power of two and doubles when a value lies outside, which merges bins in pairs:
    counts stay exact, and two histograms add up whatever they saw first.
    """

    def __init__(self) -> None:
        #: Values counted.
        self.total = 0
        #: Smallest and largest value seen; infinities before any.
        self.low, self.high = math.inf, -math.inf
        #: Half of the range covered; 0 before any value other than zero.
        self.limit = 0.0
        #: Counts, shape ``(BINS,)``.
        self.counts: Counts = np.zeros(BINS, dtype=np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count finite values of any shape."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(abs(low), abs(high)))
        self.counts += self._count(values)
        self.total += values.size

    def merge(self, other: "RangeHistogram") -> None:
        """Add the counts of another histogram."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        limit = max(self.limit, other.limit)
        self._grow(limit)
        self.counts += _widened(other.counts, other.limit, limit)
        self.total += other.total

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Return the middle of each bin, shape ``(BINS,)``."""
        return (np.arange(BINS) + 0.5) * (2.0 * self.limit / BINS) - self.limit

    def _count(self, values: npt.NDArray[np.float32]) -> Counts:
        if self.limit == 0.0:
            return _point_at_zero(values.size)
        # Scaling by a power of two is exact, so bins are the same whatever the order of the data.
        bins = np.floor((values.ravel() / (2.0 * self.limit) + 0.5) * BINS).astype(np.int64)
        return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def _grow(self, largest: float) -> None:
        if largest <= self.limit:
            return
        limit = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 0.0
        limit = limit if limit >= largest else 2.0 * limit
        self.counts = _widened(self.counts, self.limit, limit)
        self.limit = limit


def _widened(counts: Counts, limit: float, wider: float) -> Counts:
    """Return ``counts`` over ``[-limit, limit]`` as counts over ``[-wider, wider]``."""
    if limit == wider:
        return counts
    if limit == 0.0:
        return _point_at_zero(int(counts.sum()))
    while limit < wider:
        merged = counts.reshape(-1, 2).sum(axis=1)
        counts = np.pad(merged, BINS // 4)
        limit *= 2.0
    return counts


def _point_at_zero(count: int) -> Counts:
    counts: Counts = np.zeros(BINS, dtype=np.int64)
    counts[BINS // 2] = count
    return counts
