"""Percentiles and ratios of latency samples, with distribution-free confidence intervals; numpy only."""

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.measurement import LatencySamples, Samples

#: Confidence level: share of intervals that cover the true value.
CONFIDENCE = 0.95

#: Timed passes of the full-precision model per round; see ``workers.timing.latency``.
REFERENCE_PER_ROUND = 2

_RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A metric's value, with its 95 % confidence interval if it was sampled; an open side is None."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_uncertain(self) -> bool:
        """Whether the interval of a positive value reaches further than a quarter of it to one side."""
        if self.low is None or self.high is None:
            return False
        return self.low * 1.25 < self.value or self.high > 1.25 * self.value

    def scaled(self, factor: float) -> "Figure":
        """Return the figure in another unit, ``factor`` times as large."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Figure(value=self.value * factor, low=low, high=high)


def percentile(samples: Samples, percent: float) -> Figure:
    """Return a percentile of ``samples``, shape ``(n,)``, with its order-statistics interval.

    The interval assumes nothing about the distribution: its bounds are the samples whose ranks
    enclose the percentile with binomial probability ``CONFIDENCE`` (David and Nagaraja, Order
    Statistics, 3rd edition, section 7.1). A bound is open if no sample is extreme enough.
    """
    ordered = np.sort(samples)
    low, high = _ranks(len(ordered), percent / 100.0)
    value = float(np.quantile(ordered, percent / 100.0))
    # Interpolation between the last samples can fall short of a bound that is itself a sample.
    return Figure(
        value=value,
        low=None if low is None else min(value, float(ordered[low - 1])),
        high=None if high is None else max(value, float(ordered[high - 1])),
    )


def latency_ratio(latency: LatencySamples) -> Figure:
    """Return the median candidate latency over the median reference latency, with a bootstrap interval.

    The bootstrap resamples whole rounds, because neighbouring samples share the machine's momentary state. Few rounds
    make it too narrow, as the normal distribution would be in place of Student's t; the interval is widened by as much,
    as a factor, so that it stays positive.
    """
    rounds = len(latency.reference_ms) // REFERENCE_PER_ROUND
    drawn = _draws(rounds)
    ratios = _medians(latency.candidate_ms, drawn) / _medians(latency.reference_ms, drawn)
    tail = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    value = float(np.median(latency.candidate_ms) / np.median(latency.reference_ms))
    wider = small_sample_factor(rounds)
    return Figure(
        value=value,
        # The value of few rounds can lie outside the percentiles.
        low=min(float(low), value * (float(low) / value) ** wider),
        high=max(float(high), value * (float(high) / value) ** wider),
    )


@functools.cache
def small_sample_factor(n: int) -> float:
    """Return how much wider the t interval of the mean of ``n`` values is than the bootstrap's, which is normal.

    The bootstrap's variance divides by ``n`` instead of ``n - 1``. The quantile of t is that of Fisher's expansion
    (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5); its error is below 1 % from 3 degrees on.
    """
    degrees = n - 1
    if degrees < 1:
        return 1.0
    z = statistics.NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return math.sqrt(n / degrees) * t / z


@functools.lru_cache(maxsize=16)
def _draws(rounds: int) -> npt.NDArray[np.intp]:
    """Return how often each resample contains each round, shape ``(resamples, rounds)``."""
    picks = np.random.default_rng(0).integers(rounds, size=(_RESAMPLES, rounds))
    return np.asarray((picks[:, :, None] == np.arange(rounds)).sum(axis=1))


def _medians(samples: Samples, drawn: npt.NDArray[np.intp]) -> Samples:
    """Return the median of each resample of whole rounds, shape ``(resamples,)``.

    One sort serves all resamples: the rank of a sample in a resample is the number of draws up to and including it.
    """
    order = np.argsort(samples)
    ranks = np.cumsum(drawn[:, order * drawn.shape[1] // len(samples)], axis=1)
    middle = ((len(samples) - 1) // 2, len(samples) // 2)
    lower, upper = (samples[order][(ranks <= rank).sum(axis=1)] for rank in middle)
    return np.asarray((lower + upper) / 2.0)


@functools.cache
def _ranks(n: int, p: float) -> tuple[int | None, int | None]:
    """Return the 1-based ranks of the interval's bounds; None where no sample is extreme enough."""
    tail = (1.0 - CONFIDENCE) / 2.0
    cumulative = np.cumsum([_binomial(n, k, p) for k in range(n + 1)])  # P(at most k samples below)
    low = int(np.searchsorted(cumulative, tail, side="right"))
    high = int(np.searchsorted(cumulative, 1.0 - tail)) + 1
    return (low or None), (high if high <= n else None)


def _binomial(n: int, k: int, p: float) -> float:
    log_ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_ways + k * math.log(p) + (n - k) * math.log1p(-p))
