"""Response times under load, from measured requests to the text that people read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.console.output import with_unit
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Constraint
from autotune.metrics.queueing import ARRIVALS, _load, response_ms, response_percentiles
from dashboard.formatting import value_text
from workers.measurement import LatencySamples, Samples, Workload
from workers.timing.estimates import Figure

SERVICES = st.lists(st.floats(0.5, 50.0), min_size=1, max_size=30).map(np.array)
RATES = st.floats(0.1, 60.0)
NAME = "queued_latency_p95_ms"


def requests(service_ms: Samples) -> LatencySamples:
    return LatencySamples(
        workload=Workload.REQUEST, batch_size=1, candidate_ms=service_ms, reference_ms=np.ones(len(service_ms) // 5)
    )


def one_after_the_other(service_ms: Samples, requests_per_second: float) -> Samples:
    """Walk from arrival to arrival."""
    gaps, ranks = _load()
    found, arrival, free = [], 0.0, 0.0
    for number in range(ARRIVALS):
        arrival += gaps[number] * 1e3 / requests_per_second
        free = max(arrival, free) + np.sort(service_ms)[int(ranks[number] * len(service_ms))]
        found.append(free - arrival)
    return np.array(found)


@settings(max_examples=10)
@given(SERVICES, RATES)
def test_requests_wait_for_those_before_them(service_ms: Samples, rate: float) -> None:
    np.testing.assert_allclose(response_ms(service_ms, rate), one_after_the_other(service_ms, rate), rtol=1e-6)


@given(SERVICES, RATES, st.floats(0.1, 1.0))
def test_faster_requests_never_take_longer_under_the_same_load(service_ms: Samples, rate: float, by: float) -> None:
    faster, slower = response_ms(by * service_ms, rate), response_ms(service_ms, rate)
    assert (faster <= slower + 1e-6).all()
    assert (slower >= service_ms.min() - 1e-6).all()


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_waits_agree_with_theory(load: float) -> None:
    # Requests that all take 10 ms wait load / (2 (1 - load)) of that on average (Pollaczek and Khinchine); the times of
    # ones whose own vary like those between them are distributed exponentially, with a mean of 10 / (1 - load).
    fixed = response_ms(np.array([10.0]), 100.0 * load)
    assert fixed.mean() == pytest.approx(10.0 + 10.0 * load / (2.0 * (1.0 - load)), rel=0.03)
    varying = response_ms(-10.0 * np.log1p(-(np.arange(5000) + 0.5) / 5000), 100.0 * load)
    assert varying.mean() == pytest.approx(10.0 / (1.0 - load), rel=0.05)
    assert np.percentile(varying, 95) == pytest.approx(np.log(20.0) * 10.0 / (1.0 - load), rel=0.07)


def test_intervals_hold_the_value_and_are_wider_for_fewer_rounds() -> None:
    service_ms = np.random.default_rng(1).gamma(4.0, 2.5, 1000)
    many, few = (
        response_percentiles(requests(times), [50, 95], drift=2.0, requests_per_second=30.0)
        for times in (service_ms, service_ms[:60])
    )
    for percent in (50, 95):
        for found in (many[percent], few[percent]):
            assert found.low is not None
            assert found.high is not None
            assert found.low < found.value < found.high
        assert many[percent].high - many[percent].low < few[percent].high - few[percent].low  # type: ignore[operator]
    assert many[95].value == np.percentile(response_ms(2.0 * service_ms, 30.0), 95)


def test_an_overloaded_server_breaks_every_limit_and_says_so() -> None:
    once, twice = (
        response_percentiles(requests(np.full(100, 10.0)), [95], drift=1.0, requests_per_second=rate)[95].value
        for rate in (100.0, 200.0)
    )
    assert (once, twice) == (OVERLOADED_MS, 2.0 * OVERLOADED_MS)
    assert Constraint(metric=NAME, limit=1e6, at_most=True).violation(once) > 0
    assert with_unit(NAME, Figure(value=twice)) == value_text(NAME, twice) == "overloaded"
    assert with_unit(NAME, Figure(value=12.0)) == "12.0 ms"
    assert with_unit("accuracy_drop", Figure(value=0.5)) == "50.00 %"


def test_response_times_have_percentiles_like_latencies() -> None:
    names = [name for name in METRICS if name.startswith("queued_")]
    assert names == [f"queued_latency_p{percent}_ms" for percent in (50, 90, 95, 99)]
    for name in names:
        assert METRICS[name].min_repeats == METRICS[name.removeprefix("queued_")].min_repeats


def test_whole_rounds_are_drawn_again() -> None:
    service_ms = np.concatenate([np.full(10, 4.0), np.full(10, 16.0)])
    one, two = (
        response_percentiles(
            LatencySamples(
                workload=Workload.REQUEST, batch_size=1, candidate_ms=service_ms, reference_ms=np.ones(2 * rounds)
            ),
            [50],
            drift=1.0,
            requests_per_second=1e-6,
        )[50]
        for rounds in (1, 2)
    )
    assert one.low == one.value == one.high, "a single round has no other to be drawn in its place"
    assert (two.low, two.high) == (4.0, 16.0), "either of two may be drawn twice"
