"""Paired evidence: its errors under optional stopping, and the pairs that it needs."""

import itertools
import math

import numpy as np
import pytest

from autotune.deployments.evidence import LEAST_PAIRS, Evidence, Mean, Verdict, has_decayed
from autotune.errors import JobSpecError


def _difference() -> Mean:
    return Mean.of(low=-1.0, high=1.0, slack=0.01)


def _until_verdict(test: Mean, values: np.ndarray, alpha: float) -> tuple[Verdict, int]:
    """Look after every pair, and stop at the first verdict."""
    for value in values:
        test = test.with_observation(value)
        if (verdict := test.verdict(alpha)) is not Verdict.INCONCLUSIVE:
            return verdict, test.count
    return Verdict.INCONCLUSIVE, len(values)


def _differences(generator: np.random.Generator, mean: float, disagreement: float, size: int) -> np.ndarray:
    worse = (disagreement + mean) / 2
    return generator.choice([1.0, 0.0, -1.0], p=[worse, 1 - disagreement, disagreement - worse], size=size)


def test_capitals_stay_one_in_expectation_at_the_slack() -> None:
    rate, pairs = 0.2, 8
    expected = np.zeros((2, 6))
    for path in itertools.product([0, 1], repeat=pairs):
        test = Mean.of(low=0.0, high=1.0, slack=rate)
        for value in path:
            test = test.with_observation(value)
        expected += np.exp(test.log_capitals) * rate ** sum(path) * (1 - rate) ** (pairs - sum(path))
    assert expected == pytest.approx(np.ones((2, 6)))


def test_a_mean_at_the_slack_seldom_gets_a_verdict_although_every_pair_is_a_look() -> None:
    generator, alpha = np.random.default_rng(0), 0.1
    found = [_until_verdict(_difference(), _differences(generator, 0.01, 0.3, 400), alpha)[0] for _ in range(100)]
    # Three standard errors above alpha.
    most = 100 * alpha + 3 * math.sqrt(100 * alpha * (1 - alpha))
    assert found.count(Verdict.PASS) <= most
    assert found.count(Verdict.FAIL) <= most


def test_a_candidate_that_loses_twice_the_slack_never_passes() -> None:
    generator = np.random.default_rng(0)
    found = [_until_verdict(_difference(), _differences(generator, 0.03, 0.03, 3_000), 0.05 / 3) for _ in range(10)]
    assert {verdict for verdict, _ in found} == {Verdict.FAIL}


def test_a_candidate_as_good_passes_at_3_percent_disagreement() -> None:
    generator = np.random.default_rng(0)
    found = [_until_verdict(_difference(), _differences(generator, 0.0, 0.03, 8_000), 0.05 / 3) for _ in range(10)]
    assert {verdict for verdict, _ in found} == {Verdict.PASS}
    assert np.median([pairs for _, pairs in found]) <= 4_000


def test_no_candidate_passes_before_enough_pairs() -> None:
    verdict, pairs = _until_verdict(Mean.of(low=0.0, high=1.0, slack=0.5), np.zeros(1_000), 0.05)
    assert (verdict, pairs) == (Verdict.PASS, LEAST_PAIRS)


def test_nan_and_values_beyond_the_bounds_count_as_the_worst() -> None:
    tests = [_difference().with_observation(value) for value in (float("nan"), float("inf"), 1.0)]
    assert len({test.log_capitals.tobytes() for test in tests}) == 1


def test_a_slack_outside_the_bounds_is_refused() -> None:
    with pytest.raises(JobSpecError, match="must be between"):
        Mean.of(low=0.0, high=1.0, slack=1.5)


def _evidence() -> Evidence:
    tests = {"errors": Mean.of(low=-1.0, high=1.0, slack=0.1), "latency_ratio": Mean.of(low=0.0, high=4.0, slack=1.2)}
    return Evidence(figures=tests)


def _after(pairs: int, **observed: float) -> Evidence:
    evidence = _evidence()
    for _ in range(pairs):
        evidence = evidence.with_pair(observed)
    return evidence


def test_all_figures_must_pass_and_one_fails() -> None:
    assert _after(400, errors=0.0, latency_ratio=0.5).verdict is Verdict.PASS
    assert _after(400, errors=0.0, latency_ratio=1.2).verdict is Verdict.INCONCLUSIVE
    assert _after(400, errors=0.0, latency_ratio=3.0).verdict is Verdict.FAIL


def test_figures_share_the_probability_of_a_wrong_verdict() -> None:
    worse = Mean.of(low=0.0, high=1.0, slack=0.5)
    while worse.verdict(0.05) is Verdict.INCONCLUSIVE:
        worse = worse.with_observation(1.0)
    assert worse.verdict(0.05 / 3) is Verdict.INCONCLUSIVE  # between the two levels
    alone, three = (Evidence(figures=dict.fromkeys(names, worse)) for names in ("a", "abc"))
    assert (alone.verdict, three.verdict) == (Verdict.FAIL, Verdict.INCONCLUSIVE)


def test_a_pair_must_have_all_figures() -> None:
    with pytest.raises(JobSpecError, match="latency_ratio"):
        _evidence().with_pair({"errors": 0.0})


def test_decay_is_a_lower_bound_above_the_promise() -> None:
    promised = Mean.of(low=0.0, high=1.0, slack=0.02)
    kept, decayed = promised, promised
    generator = np.random.default_rng(0)
    for _ in range(500):
        kept, decayed = kept.with_observation(generator.random() * 0.04), decayed.with_observation(0.1)
    assert not has_decayed(kept, 0.01)
    assert has_decayed(decayed, 0.01)
