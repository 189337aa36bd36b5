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
    for spread in (0.0, 1e-6, 100.0):
        assert np.isfinite(link.deviation(np.array([-1e-9, 0.0, 1e-200, 1e-12]), np.full(4, spread))).all()


def test_an_accuracy_that_is_lost_altogether_has_a_curve() -> None:
    divergence = np.array([0.01, 0.1, 1.0])
    lost, nearly = (AccuracyCurve.fitted(divergence, np.array([0.1, 0.5, most])) for most in (1.0, 0.98))
    np.testing.assert_array_equal(lost.slopes, nearly.slopes)
    assert np.isfinite(lost.deviation(divergence, NONE[:3])).all()


@pytest.mark.parametrize("exponent", [0.5, 0.75, 1.0])
def test_exponents_are_as_likely_as_they_explain_the_maps(exponent: float) -> None:
    divergence = np.geomspace(1e-4, 0.3, 12)
    link = AccuracyCurve.fitted(divergence, curve(1.5, exponent, divergence))
    assert link.weights.sum() == pytest.approx(1.0)
    best = [0.5, 0.75, 1.0].index(exponent)
    assert link.weights[best] > 0.99
    assert link.slopes[best] == pytest.approx(1.5, rel=1e-6)


def test_one_map_leaves_all_exponents_open() -> None:
    link = AccuracyCurve.fitted(np.array([0.25]), np.array([0.2]))
    # Each fits it exactly, by the slope that its own power of the divergence needs.
    np.testing.assert_allclose(link.slopes, -np.log1p(-0.2) / 0.25 ** np.array([0.5, 0.75, 1.0]))
    np.testing.assert_allclose(link.weights, 1.0 / 3.0)


def test_doubt_is_that_of_the_curve_the_slope_and_the_exponents() -> None:
    link = AccuracyCurve(
        slopes=np.array([0.0, 0.0, 2.0]), deviations=np.array([0.0, 0.0, 0.3]), weights=np.array([0.0, 0.0, 1.0]),
        scatter=3.0,
    )  # fmt: skip
    lost = 2.0 * 0.1
    parts = [3.0 * 1e-3, 3.0 * 0.2 * lost, 0.1 * 0.3, 2.0 * 0.02]
    expected = np.exp(-lost) * np.linalg.norm(parts)
    np.testing.assert_allclose(link.deviation(np.array([0.1]), np.array([0.02])), expected)
    apart = AccuracyCurve(
        slopes=np.array([0.0, 0.0, 2.0]), deviations=np.zeros(3), weights=np.array([0.5, 0.0, 0.5]), scatter=0.0
    )
    # Half of the belief is that nothing is lost: the two are one half of the loss away from their mean.
    np.testing.assert_allclose(apart.deviation(np.array([0.1]), np.zeros(1)), -np.expm1(-lost) / 2.0)
