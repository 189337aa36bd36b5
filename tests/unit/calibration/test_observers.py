import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.quantization_map import ActivationRange
from workers.calibration.histogram import BINS, RangeHistogram
from workers.calibration.observers import SUMMARY_BINS, observed_range, summary
from workers.setup import CalibrationSettings, ObserverKind

SAMPLES = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=200)
KINDS = list(ObserverKind)


def histogram_of(values: list[float] | torch.Tensor) -> RangeHistogram:
    histogram = RangeHistogram()
    histogram.add(torch.as_tensor(values, dtype=torch.float32))
    return histogram


def observe(values: list[float] | torch.Tensor, kind: ObserverKind, percentile: float = 99.0) -> ActivationRange:
    return observed_range(histogram_of(values), CalibrationSettings(observer=kind, percentile=percentile))


def expected_error(histogram: RangeHistogram, chosen: ActivationRange) -> float:
    """Rounding and clipping error of the binned values, one bin after the other."""
    step = (chosen.high - chosen.low) / 255
    error = 0.0
    for count, low, high in zip(histogram.counts, histogram.edges[:-1], histogram.edges[1:], strict=True):
        middle = min(max((low + high) / 2, histogram.low), histogram.high)
        beyond = max(chosen.low - middle, middle - chosen.high, 0.0)
        error += count * (beyond**2 + step**2 / 12)
    return error


def real_error(values: torch.Tensor, chosen: ActivationRange) -> float:
    scale, zero_point = chosen.affine_uint8()
    levels = (torch.round(values.double() / scale) + zero_point).clamp(0, 255)
    return float(((levels - zero_point) * scale - values).pow(2).mean())


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(values=SAMPLES)
def test_zero_is_inside_and_nothing_beyond_the_extremes(kind: ObserverKind, values: list[float]) -> None:
    chosen = observe(values, kind)
    assert min(*values, 0.0) <= chosen.low <= 0.0 <= chosen.high <= max(*values, 0.0)


@settings(deadline=None)
@given(values=SAMPLES)
def test_minmax_is_exact(values: list[float]) -> None:
    assert observe(values, ObserverKind.MINMAX) == ActivationRange(low=min(*values, 0.0), high=max(*values, 0.0))


@settings(deadline=None)
@given(values=SAMPLES)
def test_percentile_of_everything_is_minmax(values: list[float]) -> None:
    assert observe(values, ObserverKind.PERCENTILE, 100.0) == observe(values, ObserverKind.MINMAX)


@settings(deadline=None)
@given(values=SAMPLES, percentile=st.floats(50, 100))
def test_percentile_leaves_out_no_more_than_its_share(values: list[float], percentile: float) -> None:
    chosen = observe(values, ObserverKind.PERCENTILE, percentile)
    outside = (100 - percentile) / 200 * len(values)
    # Zero is inside whatever the percentile, so only values beyond it can be left out.
    assert sum(np.float32(value) < chosen.low for value in values) <= outside
    assert sum(np.float32(value) > chosen.high for value in values) <= outside


def test_percentile_drops_the_tails() -> None:
    chosen = observe(torch.linspace(-100, 100, 20_001), ObserverKind.PERCENTILE, 90.0)
    bin_width = 2 * 128 / BINS
    assert chosen.low == pytest.approx(-90, abs=2 * bin_width)
    assert chosen.high == pytest.approx(90, abs=2 * bin_width)


def test_a_share_of_exactly_one_value_is_left_out() -> None:
    values = [float(value) for value in range(-50, 50)]  # a bin of its own each
    chosen = observe(values, ObserverKind.PERCENTILE, 98.0)  # one percent, which is one value, on either side
    assert -50.0 < chosen.low <= -49.0
    assert 48.0 <= chosen.high < 49.0
    whole = observe(values, ObserverKind.PERCENTILE, 98.1)
    assert (whole.low, whole.high) == (-50.0, 49.0)


@settings(deadline=None)
@given(values=SAMPLES)
def test_mse_expects_no_more_error_than_minmax(values: list[float]) -> None:
    histogram = histogram_of(values)
    chosen, minmax = (
        observed_range(histogram, CalibrationSettings(observer=kind))
        for kind in (ObserverKind.MSE, ObserverKind.MINMAX)
    )
    assert expected_error(histogram, chosen) <= expected_error(histogram, minmax) * (1 + 1e-9)


@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40))
def test_mse_expects_the_least_error_of_its_grid(values: list[float]) -> None:
    histogram, chosen = histogram_of(values), observe(values, ObserverKind.MSE)
    taken = np.flatnonzero(histogram.counts)
    middles = np.clip((histogram.edges[taken] + histogram.edges[taken + 1]) / 2, histogram.low, histogram.high)

    def error(low: float, high: float) -> float:
        beyond = np.maximum(np.maximum(low - middles, middles - high), 0.0)
        return float((histogram.counts[taken] * (beyond**2 + ((high - low) / 255) ** 2 / 12)).sum())

    shares = np.linspace(0.05, 1.0, 39)  # of either extreme
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    least = min(error(one * low, other * high) for one in shares for other in shares)
    assert error(chosen.low, chosen.high) == pytest.approx(least, rel=1e-9)


def test_mse_clips_a_lonely_outlier_and_is_really_better() -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0
    chosen, minmax = observe(values, ObserverKind.MSE), observe(values, ObserverKind.MINMAX)
    assert chosen.high < 0.5 * minmax.high
    assert real_error(values, chosen) < 0.6 * real_error(values, minmax)


def test_mse_keeps_a_uniform_range() -> None:
    values = torch.linspace(-1, 3, 50_001)
    chosen = observe(values, ObserverKind.MSE)
    assert (chosen.low, chosen.high) == pytest.approx((-1, 3), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_all_zero_have_a_range(kind: ObserverKind) -> None:
    assert observe([0.0, 0.0], kind) == ActivationRange(low=0.0, high=0.0)


@settings(deadline=None)
@given(values=SAMPLES)
def test_a_summary_counts_every_value_between_its_edges(values: list[float]) -> None:
    found = summary(histogram_of(values), observe(values, ObserverKind.MINMAX))
    edges = np.linspace(found.low, found.high, len(found.counts) + 1)
    assert len(found.counts) <= SUMMARY_BINS
    assert found.counts == tuple(np.histogram(np.float32(values), edges)[0].tolist())
    assert found.counts[0] > 0 < found.counts[-1]
    assert found.clipped == 0.0  # the range holds the extremes


@settings(deadline=None)
@given(values=SAMPLES, kind=st.sampled_from(KINDS))
def test_clipped_values_are_counted_to_within_a_bin(values: list[float], kind: ObserverKind) -> None:
    histogram, chosen = histogram_of(values), observe(values, kind, 80.0)
    width = histogram.edges[1] - histogram.edges[0]
    beyond = [max(chosen.low - value, value - chosen.high) for value in np.float32(values).tolist()]
    surely, perhaps = sum(far > width for far in beyond), sum(far >= 0 for far in beyond)
    assert surely <= round(summary(histogram, chosen).clipped * len(values)) <= perhaps


@settings(deadline=None)
@given(values=SAMPLES)
def test_a_summary_is_as_fine_as_its_bins_allow(values: list[float]) -> None:
    histogram = histogram_of(values)
    found = summary(histogram, observe(values, ObserverKind.MINMAX))
    taken = np.flatnonzero(histogram.counts)
    merged = round((found.high - found.low) / len(found.counts) / (histogram.edges[1] - histogram.edges[0]))
    span = int(taken[-1] - taken[0] + 1)
    assert merged == math.ceil(span / SUMMARY_BINS)
    assert found.low == histogram.edges[taken[0]]


def test_a_summary_does_not_depend_on_how_the_data_was_split() -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 3
    whole, halves = histogram_of(values), histogram_of(values[:1000])
    halves.merge(histogram_of(values[1000:]))
    chosen = observe(values, ObserverKind.PERCENTILE)
    assert summary(halves, chosen) == summary(whole, chosen)
    assert 0.005 < summary(whole, chosen).clipped < 0.015
