import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.measurement import LatencySamples
from workers.timing.estimates import REFERENCE_PER_ROUND, latency_ratio, percentile, small_sample_factor

#: n, percent, 1-based ranks of the 95 % order-statistics interval (exact binomial; None is open).
RANKS = [
    (50, 50, 18, 33),
    (100, 50, 40, 61),
    (100, 90, 84, 96),
    (100, 95, 90, 100),
    (200, 95, 184, 197),
    (500, 99, 490, 500),
    (1000, 99, 983, 997),
    (100, 99, 97, None),
    (50, 95, 44, None),
]


@pytest.mark.parametrize(("n", "percent", "low", "high"), RANKS)
def test_interval_has_the_exact_binomial_ranks(n: int, percent: float, low: int, high: int | None) -> None:
    estimate = percentile(np.arange(1.0, n + 1), percent)
    assert (estimate.low, estimate.high) == (low, high)


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=300), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
@settings(deadline=None)
def test_interval_encloses_the_value(samples: list[float], percent: float) -> None:
    estimate = percentile(np.array(samples), percent)
    assert (estimate.low or 0.0) <= estimate.value <= (estimate.high or math.inf)
    assert min(samples) <= estimate.value <= max(samples)


def test_interval_covers_the_true_percentile_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    truth = -math.log(1 - 0.9)  # 90th percentile of the exponential distribution
    hits = 0
    for _ in range(400):
        estimate = percentile(generator.exponential(size=200), 90)
        hits += (estimate.low or 0.0) <= truth <= (estimate.high or math.inf)
    assert hits / 400 >= 0.93


def latencies(candidate: np.ndarray, reference: np.ndarray) -> LatencySamples:
    return LatencySamples(batch_size=1, candidate_ms=candidate, reference_ms=reference)


def test_ratio_takes_out_a_common_drift() -> None:
    drift = np.linspace(1.0, 3.0, 20)
    candidate = (np.full((20, 10), 2.0) * drift[:, None]).ravel()
    reference = (np.full((20, REFERENCE_PER_ROUND), 8.0) * drift[:, None]).ravel()
    estimate = latency_ratio(latencies(candidate, reference))
    assert estimate.value == pytest.approx(0.25, rel=1e-9)
    assert estimate.low == pytest.approx(0.25, rel=1e-9)
    assert estimate.high == pytest.approx(0.25, rel=1e-9)


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_ratio_interval_is_the_bootstrap_of_whole_rounds(rounds: int, passes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Whole milliseconds, so that samples are often equal.
    candidate = generator.integers(1, 9, (rounds, passes)).astype(float)
    reference = generator.integers(1, 9, (rounds, REFERENCE_PER_ROUND)).astype(float)
    estimate = latency_ratio(latencies(candidate.ravel(), reference.ravel()))
    picks = np.random.default_rng(0).integers(rounds, size=(400, rounds))
    ratios = [np.median(candidate[pick]) / np.median(reference[pick]) for pick in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    wider = small_sample_factor(rounds)
    expected = [estimate.value * (bound / estimate.value) ** wider for bound in (low, high)]
    assert (estimate.low, estimate.high) == pytest.approx((min(low, expected[0]), max(high, expected[1])))
    assert estimate.low is not None
    assert estimate.low > 0.0, "a ratio of durations is positive"


@pytest.mark.parametrize(("rounds", "t"), [(4, 3.182), (5, 2.776), (10, 2.262), (50, 2.010)])
def test_ratio_interval_is_as_wide_as_student_t(rounds: int, t: float) -> None:
    assert small_sample_factor(rounds) == pytest.approx(math.sqrt(rounds / (rounds - 1)) * t / 1.960, rel=0.01)


def test_ratio_interval_of_four_rounds_covers_the_true_ratio() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        speed = generator.normal(1.0, 0.02, 4)
        candidate = (np.full((4, 10), 2.0) * speed[:, None]).ravel()
        reference = np.full(4 * REFERENCE_PER_ROUND, 4.0)
        estimate = latency_ratio(latencies(candidate, reference))
        hits += (estimate.low or 0.0) <= 0.5 <= (estimate.high or math.inf)
    assert hits / 400 >= 0.93


def test_ratio_interval_widens_with_noise() -> None:
    generator = np.random.default_rng(2)
    quiet = latencies(generator.normal(2, 0.01, 100), generator.normal(4, 0.01, 20))
    noisy = latencies(generator.normal(2, 0.5, 100), generator.normal(4, 0.5, 20))
    widths = []
    for samples in (quiet, noisy):
        estimate = latency_ratio(samples)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[0] < widths[1]


def test_ratio_is_repeatable() -> None:
    generator = np.random.default_rng(3)
    samples = latencies(generator.normal(2, 0.1, 60), generator.normal(4, 0.1, 12))
    assert latency_ratio(samples) == latency_ratio(samples)
