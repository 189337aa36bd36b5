"""Response times that are expected of a map from those of other maps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autotune.planner.queueing_curve import QueueingCurve

RATIOS = st.floats(0.05, 2.0)
PAIRS = st.lists(st.tuples(RATIOS, st.floats(1.0, 1e9)), min_size=1, max_size=12)


@given(PAIRS, st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12))
def test_slower_requests_are_expected_to_take_longer(pairs: list[tuple[float, float]], ratios: list[float]) -> None:
    curve, slower = QueueingCurve(pairs), np.sort(ratios)
    assert (np.diff(curve.predict(slower)) >= 0).all()
    assert (curve.deviation(slower, np.full(len(ratios), 0.1)) > 0).all()


def test_measured_response_times_are_expected_again_and_beyond_them_proportional_ones() -> None:
    curve = QueueingCurve([(1.0, 400.0), (0.5, 100.0)])
    found = curve.predict(np.array([0.25, 0.5, 0.5**0.5, 1.0, 2.0]))
    np.testing.assert_allclose(found, [50.0, 100.0, 200.0, 400.0, 800.0])


@given(PAIRS)
def test_of_maps_in_the_wrong_order_the_slower_time_counts_for_both(pairs: list[tuple[float, float]]) -> None:
    found = QueueingCurve(pairs).predict(np.array([ratio for ratio, _ in pairs]))
    for (ratio, _), expected in zip(pairs, found, strict=True):
        slowest = max(time for other, time in pairs if other <= ratio)
        np.testing.assert_allclose(expected, slowest, rtol=1e-9)


@given(RATIOS, st.floats(1.0, 1e6), st.floats(0.001, 0.9))
def test_one_map_passes_its_doubt_on_in_proportion(ratio: float, time: float, share: float) -> None:
    curve, doubted = QueueingCurve([(1.0, time)]), np.array([ratio])
    np.testing.assert_allclose(curve.deviation(doubted, share * doubted), [time * ratio * share], rtol=1e-6)


def test_doubt_grows_where_the_line_does_and_never_falls_below_that_of_the_request() -> None:
    curve = QueueingCurve([(0.5, 100.0), (0.6, 100.0), (0.7, 1600.0)])
    steep, flat = np.array([0.7**0.5 * 0.6**0.5]), np.array([0.55])
    slower, faster = curve.predict(steep + 0.01), curve.predict(steep - 0.01)
    np.testing.assert_allclose(curve.deviation(steep, np.array([0.01])), (slower - faster) / 2.0)
    assert curve.deviation(steep, np.array([0.01])) > 5.0 * curve.predict(steep) * 0.01 / steep
    np.testing.assert_allclose(curve.deviation(flat, np.array([0.01])), 100.0 * 0.01 / flat)


def test_a_doubt_larger_than_the_ratio_stays_finite() -> None:
    curve = QueueingCurve([(1.0, 100.0)])
    assert np.isfinite(curve.deviation(np.array([0.1]), np.array([5.0]))).all()
