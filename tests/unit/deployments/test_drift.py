"""Alarms about drift: their false-alarm rate, their delay, and the layers they name."""

import itertools
import math

import numpy as np
import pytest

from autotune.deployments.drift import (
    DriftState,
    benjamini_hochberg,
    exceedance_limit,
    held_out_limit,
    is_alarm,
    named,
    predicted_loss,
    too_wide,
    updated,
)
from autotune.deployments.thinning import Thinning
from autotune.errors import JobSpecError

ALPHA = 1e-4
#: Calibration inputs, rate of exceedance after the drift, and requests that an oracle bet needs.
_BOUNDS = [
    (64, 0.2, 151),
    (64, 0.5, 20),
    (64, 1.0, 5),
    (128, 0.2, 68),
    (128, 0.5, 14),
    (128, 1.0, 4),
    (512, 0.1, 85),
    (512, 0.2, 30),
    (512, 0.5, 8),
    (512, 1.0, 3),
]


def _fresh(layers: int, limit: float) -> DriftState:
    return DriftState.fresh(1, {f"layer{number}": limit for number in range(layers)})


def _delay(state: DriftState, outside: np.ndarray) -> int:
    """Return the requests until an alarm; ``outside`` has shape ``(requests, layers)``."""
    for count, row in enumerate(outside, start=1):
        state = updated(state, outside=row)
        if is_alarm(state, ALPHA):
            return count
    raise AssertionError("no alarm")


@pytest.mark.parametrize(("inputs", "limit"), [(64, 0.072), (128, 0.037), (512, 0.009)])
def test_the_null_is_the_quantile_of_the_beta_distribution(inputs: int, limit: float) -> None:
    assert exceedance_limit(inputs, layers=1) == pytest.approx(limit, abs=6e-4)


def test_the_null_covers_95_percent_of_calibration_sets() -> None:
    draws = np.random.default_rng(0).beta(2, 127, size=100_000)
    assert np.mean(draws <= exceedance_limit(128, layers=1)) == pytest.approx(0.95, abs=0.004)


def test_held_out_exceedances_bound_their_rate() -> None:
    rate = held_out_limit(3, 100, layers=1)
    tail = sum(math.comb(100, k) * rate**k * (1 - rate) ** (100 - k) for k in range(4))
    assert tail == pytest.approx(0.05, abs=1e-9)


def test_restarted_evidence_grows_by_one_per_request_at_most() -> None:
    limit, requests = 0.1, 8
    total = 0.0
    for path in itertools.product([0, 1], repeat=requests):
        state = _fresh(1, limit)
        for outside in path:
            state = updated(state, outside=np.array([outside]))
        total += state.evidence[0] * limit ** sum(path) * (1 - limit) ** (requests - sum(path))
    assert total == pytest.approx(requests)


def test_a_window_counts_as_its_votes() -> None:
    limit, votes = 0.1, 9
    mean = sum(
        math.comb(votes, k)
        * limit**k
        * (1 - limit) ** (votes - k)
        * updated(_fresh(1, limit), outside=np.array([k]), votes=votes).evidence[0]
        for k in range(votes + 1)
    )
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("dependent", [False, True])
def test_ten_thousand_clean_windows_raise_no_alarm(dependent: bool) -> None:
    generator, n, layers, votes = np.random.default_rng(3), 256, 12, 20
    rates = generator.beta(2, n - 1, size=layers)
    state = _fresh(layers, exceedance_limit(n, layers=layers))
    for _ in range(10_000):
        ranks = generator.random((votes, 1 if dependent else layers))
        state = updated(state, outside=(ranks < rates).sum(axis=0), votes=votes)
        assert not is_alarm(state, ALPHA)


@pytest.mark.parametrize(("inputs", "rate", "bound"), _BOUNDS)
def test_a_rise_of_one_layer_of_40_is_seen_in_little_more_than_the_bound(inputs: int, rate: float, bound: int) -> None:
    """The bound is log(layers / alpha) over the divergence per request; the mixture and chance cost the rest."""
    generator, delays = np.random.default_rng(0), list[int]()
    for _ in range(20):
        outside = np.zeros((6 * bound + 60, 40), dtype=int)
        outside[:, 7] = generator.random(len(outside)) < rate
        delays.append(_delay(_fresh(40, exceedance_limit(inputs, layers=1)), outside))
    assert np.mean(delays) <= 1.2 * bound + 1.0


@pytest.mark.parametrize("inputs", [64, 256, 512])
def test_a_gain_of_half_is_seen_within_50_requests(inputs: int) -> None:
    """A request here has 128 tokens of 64 features."""
    generator = np.random.default_rng(1)
    values = 128 * 64

    def largest(requests: int) -> np.ndarray:
        return np.array([np.abs(generator.standard_normal(values)).max() for _ in range(requests)])

    edge = largest(inputs).max()
    outside = np.zeros((50, 40), dtype=int)
    outside[:, 3] = 1.5 * largest(50) > edge
    assert _delay(_fresh(40, exceedance_limit(inputs, layers=40)), outside) <= 50


def test_the_layer_that_drifts_is_named() -> None:
    state = _fresh(40, exceedance_limit(256, layers=40))
    for _ in range(30):
        outside = np.zeros(40, dtype=int)
        outside[5] = 1
        state = updated(state, outside=outside)
    assert named(state, ALPHA) == ("layer5",)


def test_e_bh_is_its_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        evidence = np.exp(generator.normal(2.0, 2.0, size=6))
        sizes = [k for k in range(1, 7) if sum(evidence >= 6 / (k * 0.1)) >= k]
        oracle = evidence >= 6 / (max(sizes) * 0.1) if sizes else np.zeros(6, dtype=bool)
        assert benjamini_hochberg(evidence, 0.1).tolist() == oracle.tolist()


def test_a_deploy_forgets() -> None:
    state = updated(_fresh(1, 0.1), outside=np.array([50]), votes=50)
    assert is_alarm(state, ALPHA)
    assert not is_alarm(DriftState.fresh(2, {"layer0": 0.1}), ALPHA)


def test_evidence_never_overflows() -> None:
    state = _fresh(1, 0.01)
    for _ in range(20):
        state = updated(state, outside=np.array([10_000]), votes=10_000)
    assert np.isfinite(state.evidence).all()
    assert is_alarm(state, ALPHA)


@pytest.mark.parametrize("outside", [[2], [-1], [0, 0]])
def test_impossible_counts_are_refused(outside: list[int]) -> None:
    with pytest.raises(JobSpecError, match="0 to 1 exceedances for each of 1 layers"):
        updated(_fresh(1, 0.1), outside=np.array(outside))


def test_a_burst_of_one_client_is_one_vote() -> None:
    thinning = Thinning(rate=1.0)
    assert [thinning.votes("a", at) for at in (0.0, 1.0, 59.0, 60.0)] == [True, False, False, True]


def test_a_burst_cannot_raise_an_alarm() -> None:
    thinning, state = Thinning(rate=1.0), _fresh(1, exceedance_limit(256, layers=1))
    for request in range(1_000):
        if thinning.votes("noisy", request * 0.05):
            state = updated(state, outside=np.array([1]))
    assert not is_alarm(state, ALPHA)


def test_a_late_request_does_not_vote() -> None:
    thinning = Thinning(rate=1.0)
    assert thinning.votes("a", 130.0)
    assert not thinning.votes("b", 10.0)


def test_clients_are_thinned_at_random() -> None:
    thinning = Thinning(rate=0.3)
    shares = [thinning.votes(f"client{number}", 0.0) for number in range(10_000)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.015)
    assert not any(thinning.votes(f"client{number}", 1.0) for number in range(10_000))


def test_wide_ranges_are_an_advice_after_a_day() -> None:
    used = np.array([0.2, 0.25, 0.9])
    assert too_wide(("a", "b", "c"), used, 86_399.0) == ()
    assert too_wide(("a", "b", "c"), used, 86_400.0) == ("a",)


def test_predicted_losses_add() -> None:
    assert predicted_loss({"a": 0.02, "b": 0.1, "c": 1.0}, {"a": 2.0, "b": 0.5}) == pytest.approx(0.09)
    with pytest.raises(JobSpecError, match=r"\['d'\] have none"):
        predicted_loss({"a": 0.02}, {"d": 1.0})
