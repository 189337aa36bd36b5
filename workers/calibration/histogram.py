"""A streaming histogram whose range grows with the data, in bounded memory."""

import math

import numpy as np
import numpy.typing as npt
import torch

#: Bins of a histogram; divisible by 4, so that doubling the range merges whole bins.
BINS = 2048

#: Values counted of one tensor where only the extremes decide: counting all takes most of the calibration.
MOST_COUNTED = 1 << 15

#: Exponent of the smallest limit, as a power of two; keeps the bin width a normal float32.
_SMALLEST_EXPONENT = -100

Counts = npt.NDArray[np.int64]


class RangeHistogram:
    """Counts of values in ``BINS`` equal bins over ``[-limit, limit)``, and the exact extremes.

    The limit is the power of two above the largest magnitude seen, and zero is an edge between bins.
    Doubling the limit merges bins in pairs, so the counts depend neither on the order of the data nor
    on how it is split: histograms add up exactly.
    """

    def __init__(self, most_counted: int | None = None) -> None:
        """Count all values, or only ``most_counted`` of a tensor, at regular distances; the extremes are of all."""
        self._most_counted = most_counted
        #: Values counted.
        self.total = 0
        #: Smallest and largest value seen; infinities before any.
        self.low, self.high = math.inf, -math.inf
        #: Counts, shape ``(BINS,)``.
        self.counts: Counts = np.zeros(BINS, dtype=np.int64)
        self._exponent = _SMALLEST_EXPONENT

    @property
    def limit(self) -> float:
        """Half the width of the covered range."""
        return 2.0**self._exponent

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Lower edges of the bins and the upper edge of the last, shape ``(BINS + 1,)``."""
        return np.linspace(-self.limit, self.limit, BINS + 1)

    def add(self, values: torch.Tensor) -> None:
        """Count float32 values of any shape.

        Raises:
            ValueError: if a value is nan or infinite.
        """
        if values.numel() == 0:
            return
        low, high = (bound.item() for bound in torch.aminmax(values))
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"values must be finite, but reach from {low} to {high}")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if largest > 0.0:
            # frexp returns the exponent of the power of two above its argument.
            self._widen(math.frexp(largest)[1])
        # Scaling by a power of two is exact, and so are small integers, so every value falls into its bin.
        counted = values.flatten()[:: self._distance(values)]
        bins = (counted * (BINS / 2 / self.limit)).floor_().add_(BINS // 2)
        self.counts += torch.bincount(bins.to(torch.int32), minlength=BINS).numpy()
        self.total += counted.numel()

    def merge(self, other: "RangeHistogram") -> None:
        """Add the counts of another histogram."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._widen(other._exponent)
        self.counts += _widened(other.counts, self._exponent - other._exponent)
        self.total += other.total

    def _distance(self, values: torch.Tensor) -> int:
        """Return the distance between counted values; it shares no factor with the features, so that all count."""
        distance = 1 if self._most_counted is None else math.ceil(values.numel() / self._most_counted)
        while values.dim() and math.gcd(distance, values.shape[-1]) != 1:
            distance += 1
        return distance

    def _widen(self, exponent: int) -> None:
        if exponent > self._exponent:
            self.counts = _widened(self.counts, exponent - self._exponent)
            self._exponent = exponent


def _widened(counts: Counts, doublings: int) -> Counts:
    """Return ``counts`` rebinned for a range ``2 ** doublings`` times as wide."""
    # Once all values are in the two bins around zero, further doublings change nothing.
    for _ in range(min(doublings, BINS.bit_length())):
        counts = np.pad(counts.reshape(-1, 2).sum(axis=1), BINS // 4)
    return counts
