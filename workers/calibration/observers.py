"""Observers: derive the range of static quantization from the histogram of a layer's inputs."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from search_spaces.quantization_map import ActivationRange
from workers.calibration.histogram import RangeHistogram
from workers.setup import ActivationHistogram, CalibrationSettings, ObserverKind

#: Bounds that the MSE observer tries, as shares of the extremes.
_SHARES = np.linspace(0.05, 1.0, 39)
_STEPS = 255
#: Maximum number of bins of the histograms stored with a job.
SUMMARY_BINS = 64


def observed_range(histogram: RangeHistogram, settings: CalibrationSettings) -> ActivationRange:
    """Return the range that the configured observer selects; it always includes zero.

    Args:
        histogram: a histogram of at least one value.
        settings: the observer, and the percentile for the percentile observer.
    """
    low, high = _OBSERVERS[settings.observer](histogram, settings)
    return ActivationRange(low=min(low, 0.0), high=max(high, 0.0))


def summary(histogram: RangeHistogram, calibrated: ActivationRange) -> ActivationHistogram:
    """Return a histogram small enough to store for every layer, over whole bins from the smallest to the largest value.

    Args:
        histogram: a histogram of at least one value.
        calibrated: the range that was selected from it.
    """
    taken = np.flatnonzero(histogram.counts)
    first, last = int(taken[0]), int(taken[-1])
    width = -(-(last - first + 1) // SUMMARY_BINS)
    counts = np.add.reduceat(histogram.counts[first : last + 1], range(0, last - first + 1, width))
    edges = histogram.edges
    return ActivationHistogram(
        low=float(edges[first]),
        # The last bin is as wide as the others, though fewer bins may be merged into it.
        high=float(edges[first] + len(counts) * width * (edges[1] - edges[0])),
        counts=tuple(counts.tolist()),
        clipped=_outside(histogram, calibrated) / histogram.total,
    )


def _outside(histogram: RangeHistogram, calibrated: ActivationRange) -> int:
    """Return the number of values in bins that lie entirely outside the range."""
    outside = histogram.edges[1:] <= calibrated.low
    # A value exactly on an edge belongs to the bin above it, but the largest value must not count as outside for that.
    if calibrated.high < histogram.high:
        outside |= histogram.edges[:-1] >= calibrated.high
    return int(histogram.counts[outside].sum())


def _minmax(histogram: RangeHistogram, settings: CalibrationSettings) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: RangeHistogram, settings: CalibrationSettings) -> tuple[float, float]:
    """Return the smallest range of whole bins that leaves out at most half of the remaining share on either side."""
    outside = (100.0 - settings.percentile) / 200.0 * histogram.total
    first = int(np.argmax(np.cumsum(histogram.counts) > outside))
    last = int(np.argmax(np.cumsum(histogram.counts[::-1]) > outside))
    low, high = histogram.edges[first], histogram.edges[-1 - last]
    return max(float(low), histogram.low), min(float(high), histogram.high)


def _least_error(histogram: RangeHistogram, settings: CalibrationSettings) -> tuple[float, float]:
    """Return the range with the least expected squared error, with bounds on a grid of shares of the extremes.

    Rounding costs ``step^2 / 12`` per value, and clipping the squared distance of each value
    outside the range (Sung, Shin and Hwang, arXiv:1511.06488).
    """
    lows = _SHARES * min(histogram.low, 0.0)
    highs = _SHARES * max(histogram.high, 0.0)
    steps = (highs[None, :] - lows[:, None]) / _STEPS
    cost = _clipping(histogram, lows, highs) + histogram.total * steps**2 / 12.0
    best_low, best_high = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return float(lows[best_low]), float(highs[best_high])


def _clipping(
    histogram: RangeHistogram, lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the summed squared distance of values outside each range, shape ``(lows, highs)``."""
    # The middle of a bin represents its values, clamped to the extremes.
    middles = np.clip((histogram.edges[:-1] + histogram.edges[1:]) / 2, histogram.low, histogram.high)
    below = (histogram.counts * np.clip(lows[:, None] - middles, 0.0, None) ** 2).sum(axis=1)
    above = (histogram.counts * np.clip(middles - highs[:, None], 0.0, None) ** 2).sum(axis=1)
    return np.asarray(below[:, None] + above[None, :])


_OBSERVERS: dict[ObserverKind, Callable[[RangeHistogram, CalibrationSettings], tuple[float, float]]] = {
    ObserverKind.MINMAX: _minmax,
    ObserverKind.PERCENTILE: _percentile,
    ObserverKind.MSE: _least_error,
}
