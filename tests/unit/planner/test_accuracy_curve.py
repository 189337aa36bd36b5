"""The curve from divergence to the drop of accuracy."""

import numpy as np
import pytest

from autotune.planner.accuracy_curve import AccuracyCurve

DIVERGENCE = np.array([0.0, 1e-5, 1e-3, 2e-2, 0.3])


@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("slope", [1e-4, 0.2, 5.0])
def test_a_curve_is_recovered(exponent: float, slope: float) -> None:
    link = AccuracyCurve.fitted(DIVERGENCE, slope * DIVERGENCE**exponent)
    assert link.exponent == exponent
    assert link.slope == pytest.approx(slope)
    np.testing.assert_allclose(link.drop(4 * DIVERGENCE), slope * (4 * DIVERGENCE) ** exponent)


def test_slope_is_of_least_squares_and_scatter_what_it_leaves() -> None:
    generator = np.random.default_rng(0)
    divergence = generator.uniform(0, 1, 2000)
    link = AccuracyCurve.fitted(divergence, 0.5 * divergence + generator.normal(0, 0.05, 2000))
    assert link.exponent == 1.0
    assert link.slope == pytest.approx(0.5, rel=0.02)
    assert link.scatter == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("divergence", "drop"),
    [([], []), ([0.0], [0.0]), ([0.0, 0.0], [0.0, 0.5])],
    ids=["nothing", "full precision", "no map diverges"],
)
def test_without_divergence_nothing_is_known(divergence: list[float], drop: list[float]) -> None:
    assert AccuracyCurve.fitted(np.array(divergence), np.array(drop)) == AccuracyCurve()
    np.testing.assert_array_equal(AccuracyCurve().drop(DIVERGENCE), 0.0)


def test_accuracy_never_rises_with_divergence() -> None:
    link = AccuracyCurve.fitted(DIVERGENCE, -DIVERGENCE)
    assert link.slope == 0.0
    assert link.scatter == pytest.approx(np.sqrt(np.mean(DIVERGENCE**2)))


def test_a_perfect_fit_leaves_some_doubt() -> None:
    assert AccuracyCurve.fitted(np.array([0.1]), np.array([0.02])).scatter == pytest.approx(1e-3)


def test_a_divergence_below_zero_counts_as_none() -> None:
    link = AccuracyCurve(slope=2.0, exponent=0.5)
    np.testing.assert_allclose(link.drop(np.array([-1e-9, 0.25])), [0.0, 1.0])
