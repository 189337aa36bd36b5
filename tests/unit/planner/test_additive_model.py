"""The additive model against the closed form in its other, textbook shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.planner.additive_model import AdditiveModel, Columns, Matrix, Vector

GROUPS, CHOICES = 5, 3
EFFECTS = 1 + GROUPS * CHOICES
SEEDS = st.integers(0, 2**32 - 1)


def columns_of(maps: Columns) -> Columns:
    return np.asarray(1 + CHOICES * np.arange(GROUPS) + maps)


def random_maps(generator: np.random.Generator, count: int) -> Columns:
    return columns_of(generator.integers(CHOICES, size=(count, GROUPS)))


def uniform(choice: int) -> Columns:
    return columns_of(np.full((1, GROUPS), choice))


def design(columns: Columns) -> Matrix:
    """Return which effects maps have, shape ``(n, effects)``; all have effect 0."""
    return np.array([[float(effect in {0, *row}) for effect in range(EFFECTS)] for row in columns])


def random_prior(generator: np.random.Generator) -> tuple[Vector, Vector, Matrix]:
    return generator.normal(size=EFFECTS), generator.uniform(0.1, 2.0, EFFECTS), generator.normal(size=(2, EFFECTS))


@given(SEEDS)
@settings(deadline=None)
def test_the_posterior_is_that_of_the_textbook(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mean, spread, shared = random_prior(generator)
    columns, values, noise = random_maps(generator, 8), generator.normal(size=8), generator.uniform(0.1, 1.0, 8)
    # Rasmussen and Williams (2006), eq. 2.8: precisions add.
    precision, seen = np.linalg.inv(np.diag(spread**2) + shared.T @ shared), design(columns)
    covariance = np.linalg.inv(precision + seen.T @ np.diag(noise**-2.0) @ seen)
    expected = covariance @ (precision @ mean + seen.T @ (values / noise**2))
    model = AdditiveModel(mean, spread, shared)
    model.observe(columns, values, noise)
    others = random_maps(generator, 20)
    sums = design(others)
    np.testing.assert_allclose(model.mean, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.predict(others), sums @ expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.deviation(others) ** 2, np.diag(sums @ covariance @ sums.T), rtol=1e-6, atol=1e-6)


@given(SEEDS)
@settings(deadline=None)
def test_a_batch_teaches_as_much_as_its_maps_one_by_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prior = random_prior(generator)
    # More than stay unwritten, and some that do.
    columns, values, noise = random_maps(generator, 40), generator.normal(size=40), generator.uniform(0.1, 1.0, 40)
    batch, single, others = AdditiveModel(*prior), AdditiveModel(*prior), random_maps(generator, 20)
    batch.observe(columns, values, noise)
    for row in range(40):
        single.observe(columns[row : row + 1], values[row : row + 1], noise[row : row + 1])
    for model in (batch, single):
        model.scale(np.arange(EFFECTS) % 2 == 0, 3.0)
    np.testing.assert_allclose(single.predict(others), batch.predict(others), atol=1e-9)
    np.testing.assert_allclose(single.deviation(others), batch.deviation(others), atol=1e-7)
    drawn = (model.draw(np.random.default_rng(seed)) for model in (batch, single))
    np.testing.assert_allclose(*drawn, atol=1e-7)


@given(SEEDS)
@settings(deadline=None)
def test_deviation_never_grows_and_never_turns_negative(seed: int) -> None:
    generator = np.random.default_rng(seed)
    model, others = AdditiveModel(*random_prior(generator)), random_maps(generator, 20)
    for _ in range(30):  # nearly noiseless and more than there are effects: rounding alone decides in the end
        before, columns = model.deviation(others), random_maps(generator, 1)
        model.observe(columns, generator.normal(size=1), np.array([1e-9]))
        assert (model.deviation(others) >= 0).all()
        assert (model.deviation(others) <= before + 1e-4).all()
        assert model.deviation(columns)[0] < 1e-3


@given(SEEDS)
@settings(deadline=None)
def test_effects_are_recovered_as_noise_vanishes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    model, truth = AdditiveModel(*random_prior(generator)), generator.normal(size=EFFECTS)
    columns, others = random_maps(generator, 40), random_maps(generator, 20)
    model.observe(columns, design(columns) @ truth, np.full(40, 1e-5))
    np.testing.assert_allclose(model.predict(others), design(others) @ truth, atol=1e-2)


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_one_uniform_map_corrects_its_choice_everywhere(factor: float) -> None:
    prior = np.concatenate([[0.0], np.outer(2.0 ** np.arange(GROUPS), [1.0, 2.0, 4.0]).ravel()])
    shared = np.zeros((CHOICES, EFFECTS))
    for choice in range(CHOICES):
        shared[choice, 1 + choice :: CHOICES] = prior[1 + choice :: CHOICES]
    model = AdditiveModel(prior, 0.05 * prior, shared)
    before = model.deviation(uniform(1))
    model.observe(uniform(1), factor * model.predict(uniform(1)), np.array([0.01]))
    # The large effects differ most, the small ones by the same factor.
    np.testing.assert_allclose(model.mean[2::CHOICES], factor * prior[2::CHOICES], rtol=0.05)
    np.testing.assert_allclose(model.predict(uniform(2)), prior[3::CHOICES].sum())
    assert model.deviation(uniform(1)) < 0.01 * before


def test_scaling_multiplies_the_chosen_effects_and_their_uncertainty() -> None:
    model = AdditiveModel(np.ones(EFFECTS), np.full(EFFECTS, 0.5), np.zeros((1, EFFECTS)))
    model.scale(np.isin(np.arange(EFFECTS), uniform(1)), 10.0)
    assert model.predict(uniform(1)) == pytest.approx(1.0 + 10.0 * GROUPS)
    assert model.predict(uniform(2)) == pytest.approx(1.0 + GROUPS)
    assert model.deviation(uniform(1)) == pytest.approx(0.5 * np.sqrt(1 + 100 * GROUPS))
    assert model.deviation(uniform(2)) == pytest.approx(0.5 * np.sqrt(1 + GROUPS))


def test_the_prior_is_not_changed_in_place() -> None:
    mean = np.ones(EFFECTS)
    AdditiveModel(mean, np.ones(EFFECTS), np.zeros((1, EFFECTS))).observe(uniform(0), np.zeros(1), np.ones(1))
    assert (mean == 1.0).all()


def test_draws_have_the_moments_of_each_effect() -> None:
    generator = np.random.default_rng(0)
    mean, spread, shared = random_prior(generator)
    draws = np.array([AdditiveModel(mean, spread, shared).draw(generator) for _ in range(4000)])
    deviation = np.sqrt(spread**2 + (shared**2).sum(axis=0))
    assert np.abs((draws.mean(axis=0) - mean) / deviation).max() < 0.1
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(EFFECTS)).max() < 0.1


def test_maps_that_share_all_uncertain_effects_may_be_observed_together() -> None:
    spread = np.zeros(EFFECTS)
    spread[0] = 1e-3
    model = AdditiveModel(np.zeros(EFFECTS), spread, np.zeros((1, EFFECTS)))
    model.observe(np.vstack([uniform(0), uniform(1)]), np.zeros(2), np.full(2, 1e-12))
    np.testing.assert_allclose(model.predict(uniform(0)), 0.0, atol=1e-9)
