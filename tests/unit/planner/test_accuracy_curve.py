"""The curve from divergence to the drop of accuracy."""

import numpy as np
import pytest

from autotune.planner.accuracy_curve import AccuracyCurve

DIVERGENCE = np.array([0.0, 1e-5, 1e-3, 2e-2, 0.3])
NONE = np.zeros(len(DIVERGENCE))


def curve(slope: float, exponent: float, divergence: np.ndarray = DIVERGENCE) -> np.ndarray:
    return np.asarray(-np.expm1(-slope * divergence**exponent))


@pytest.mark.parametrize("exponent", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("slope", [0.2, 5.0])
def test_a_curve_is_recovered(exponent: float, slope: float) -> None:
    divergence = np.tile(np.geomspace(1e-5, 0.3, 10), 3)
    link = AccuracyCurve.fitted(divergence, curve(slope, exponent, divergence))
    np.testing.assert_allclose(link.drop(DIVERGENCE), curve(slope, exponent), rtol=0.02, atol=1e-5)


def test_scatter_grows_with_the_noise_and_doubt_shrinks_with_the_maps() -> None:
    generator = np.random.default_rng(0)
    divergence = generator.uniform(0, 1, 2000)
    drop = curve(0.5, 1.0, divergence) + generator.normal(0, 0.05, 2000)
    few, many = AccuracyCurve.fitted(divergence[:20], drop[:20]), AccuracyCurve.fitted(divergence, drop)
    quiet = AccuracyCurve.fitted(divergence, curve(0.5, 1.0, divergence))
    assert quiet.scatter < 0.1 < 1.0 < many.scatter
    assert (many.deviations < few.deviations).all()
    np.testing.assert_allclose(many.drop(np.array([0.5])), curve(0.5, 1.0, np.array([0.5])), rtol=0.15)


@pytest.mark.parametrize(
    ("divergence", "drop"),
    [([], []), ([0.0], [0.0]), ([0.0, 0.0], [0.0, 0.5])],
    ids=["nothing", "full precision", "no map diverges"],
)
def test_without_divergence_nothing_is_known(divergence: list[float], drop: list[float]) -> None:
    link = AccuracyCurve.fitted(np.array(divergence), np.array(drop))
    np.testing.assert_array_equal(link.drop(DIVERGENCE), 0.0)
    np.testing.assert_allclose(link.deviation(DIVERGENCE, NONE), 0.01)


def test_accuracy_never_rises_with_divergence() -> None:
    link = AccuracyCurve.fitted(DIVERGENCE, -DIVERGENCE)
    np.testing.assert_array_equal(link.drop(DIVERGENCE), 0.0)
    assert link.scatter > 1.0


def test_far_from_the_only_map_the_exponents_disagree() -> None:
    link = AccuracyCurve.fitted(np.array([0.7]), np.array([0.5]))
    near, far = np.array([0.7]), np.array([0.005])
    assert link.drop(near) == pytest.approx([0.5], rel=0.02)
    assert (link.deviation(near, np.zeros(1)) < 0.25 * link.drop(near)).all()
    assert (link.deviation(far, np.zeros(1)) > 0.5 * link.drop(far)).all()


def test_doubt_about_the_divergence_is_doubt_about_the_drop() -> None:
    link = AccuracyCurve.fitted(np.geomspace(1e-4, 0.1, 20), curve(2.0, 1.0, np.geomspace(1e-4, 0.1, 20)))
    divergence = np.array([0.01])
    sure, unsure = (float(link.deviation(divergence, share * divergence)[0]) for share in (0.0, 0.5))
    assert np.hypot(sure, 0.5 * 2.0 * 0.01) == pytest.approx(unsure, rel=0.05)


def test_a_divergence_below_zero_counts_as_none() -> None:
    link = AccuracyCurve.fitted(np.array([0.25]), np.array([0.1]))
    np.testing.assert_array_equal(link.drop(np.array([-1e-9])), 0.0)
    assert np.isfinite(link.deviation(np.array([-1e-9, 0.0]), np.zeros(2))).all()
