import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.calibration.histogram import BINS, MOST_COUNTED, RangeHistogram

# Bounded so that no product with the bins' scale leaves float32.
SMALLEST, LARGEST = 2.0**-60, 2.0**60
VALUES = st.one_of(
    st.just(0.0),
    st.floats(SMALLEST, LARGEST, width=32),
    st.floats(-LARGEST, -SMALLEST, width=32),
    st.integers(-64, 64).map(lambda quarters: quarters / 4),
)
CHUNKS = st.lists(st.lists(VALUES, max_size=20), max_size=6)


def histogram_of(*chunks: list[float]) -> RangeHistogram:
    histogram = RangeHistogram()
    for chunk in chunks:
        histogram.add(torch.tensor(chunk, dtype=torch.float32))
    return histogram


def facts(histogram: RangeHistogram) -> tuple[object, ...]:
    return histogram.total, histogram.low, histogram.high, histogram.limit, histogram.counts.tolist()


@settings(deadline=None)
@given(chunks=CHUNKS)
def test_every_value_is_counted_in_its_bin(chunks: list[list[float]]) -> None:
    histogram = histogram_of(*chunks)
    values = np.float32([value for chunk in chunks for value in chunk]).astype(np.float64)
    expected, _ = np.histogram(values, bins=histogram.edges)
    assert histogram.total == histogram.counts.sum() == values.size
    assert histogram.counts.tolist() == expected.tolist()
    if values.size:
        assert (histogram.low, histogram.high) == (values.min(), values.max())
        assert np.abs(values).max() < histogram.limit


@settings(deadline=None)
@given(chunks=CHUNKS, order=st.randoms(use_true_random=False))
def test_order_and_split_do_not_matter(chunks: list[list[float]], order: random.Random) -> None:
    shuffled = [value for chunk in chunks for value in chunk]
    order.shuffle(shuffled)
    assert facts(histogram_of(*chunks)) == facts(histogram_of(shuffled))


@settings(deadline=None)
@given(left=CHUNKS, right=CHUNKS)
def test_merging_is_adding_the_data_from_either_side(left: list[list[float]], right: list[list[float]]) -> None:
    one, other = histogram_of(*left), histogram_of(*right)
    one.merge(histogram_of(*right))
    other.merge(histogram_of(*left))
    assert facts(one) == facts(other) == facts(histogram_of(*left, *right))


def test_memory_does_not_grow_with_the_range() -> None:
    histogram = histogram_of(*([10.0**exponent, -(10.0**exponent)] for exponent in range(-30, 31)))
    assert histogram.counts.shape == (BINS,)
    assert histogram.total == 122


def test_empty_histogram_has_no_extremes() -> None:
    assert facts(histogram_of([]))[:3] == (0, math.inf, -math.inf)


def test_a_large_tensor_is_sampled_with_all_features_and_exact_extremes() -> None:
    rows, features = 4096, 64
    values = torch.arange(features).float().repeat(rows, 1)  # each feature has a bin of its own
    values[1, 2] = 900.0
    histogram = RangeHistogram(MOST_COUNTED)
    histogram.add(values)
    assert MOST_COUNTED / 2 < histogram.total <= MOST_COUNTED
    assert (histogram.low, histogram.high) == (0.0, 900.0)
    counts = histogram.counts[BINS // 2 :]  # bins of one, from 0 on
    assert histogram.limit == 1024.0
    assert counts[:features].min() > 0.9 * histogram.total / features


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        RangeHistogram().add(torch.tensor([1.0, wrong, 2.0]))
