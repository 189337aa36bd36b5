"""Observers: from a histogram of a layer's inputs to the range that static quantization covers."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from search_spaces.quantization_map import ActivationRange
from workers.calibration.histogram import RangeHistogram
from workers.setup import CalibrationSettings, ObserverKind

#: Ranges tried on each side by the MSE observer, as shares of the extreme.
_SHARES = np.linspace(0.05, 1.0, 39)
_LEVELS = 255


def observed_range(histogram: RangeHistogram, settings: CalibrationSettings) -> ActivationRange:
    """Return the range the configured observer chooses; zero is always inside."""
    return _OBSERVERS[settings.observer](histogram, settings)


def _minmax(histogram: RangeHistogram, settings: CalibrationSettings) -> ActivationRange:
    return ActivationRange(low=min(histogram.low, 0.0), high=max(histogram.high, 0.0))


def _percentile(histogram: RangeHistogram, settings: CalibrationSettings) -> ActivationRange:
    """Return the smallest range of whole bins that leaves an equal share out on both sides."""
    outside = (100.0 - settings.percentile) / 200.0 * histogram.total
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])[::-1]
    width = 2.0 * histogram.limit / len(below)
    first = int(np.argmax(below > outside))
    last = len(above) - 1 - int(np.argmax(above[::-1] > outside))
    low = histogram.centres[first] - width / 2
    high = histogram.centres[last] + width / 2
    return ActivationRange(low=min(max(low, histogram.low), 0.0), high=max(min(high, histogram.high), 0.0))


def _least_error(histogram: RangeHistogram, settings: CalibrationSettings) -> ActivationRange:
    """Return the range with the least expected squared error of 8-bit quantization.

    Rounding costs step^2 / 12 for each value inside, clipping the squared distance for each outside
    (Sung, Shin and Hwang, arXiv:1511.06488). Both ends are tried on a grid of shares of the extremes.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    lows, highs = _SHARES * low, _SHARES * high
    below = np.array([_clipping(histogram, histogram.centres < edge, edge) for edge in lows])
    above = np.array([_clipping(histogram, histogram.centres > edge, edge) for edge in highs])
    step = (highs[None, :] - lows[:, None]) / _LEVELS
    cost = below[:, None] + above[None, :] + histogram.total * step**2 / 12.0
    best_low, best_high = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return ActivationRange(low=float(lows[best_low]), high=float(highs[best_high]))


def _clipping(histogram: RangeHistogram, outside: npt.NDArray[np.bool_], edge: float) -> float:
    return float(np.sum(histogram.counts[outside] * (histogram.centres[outside] - edge) ** 2))


_OBSERVERS: dict[ObserverKind, Callable[[RangeHistogram, CalibrationSettings], ActivationRange]] = {
    ObserverKind.MINMAX: _minmax,
    ObserverKind.PERCENTILE: _percentile,
    ObserverKind.MSE: _least_error,
}
