"""PairInteractions against an oracle that writes every pair down, and their reluctance."""

import itertools

import numpy as np
import pytest

from autotune.planner.additive_model import AdditiveModel, Columns, Vector
from autotune.planner.pair_interactions import PairInteractions, _covariance

GROUPS, CHOICES = 6, 3
EFFECTS = 1 + GROUPS * CHOICES


def random_maps(generator: np.random.Generator, count: int) -> Columns:
    return np.asarray(1 + CHOICES * np.arange(GROUPS) + generator.integers(CHOICES, size=(count, GROUPS)))


def model_of(effects: Vector) -> AdditiveModel:
    """An additive model that knows what every choice costs alone."""
    return AdditiveModel(effects, np.full(EFFECTS, 1e-9), np.zeros((1, EFFECTS)))


class Truth:
    """Choices that cost something alone, and pairs of them something together."""

    def __init__(self, strength: float, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.effects = np.append(0.0, 10.0 ** generator.uniform(-4.0, -2.0, EFFECTS - 1))
        # Neighbours of one choice add up, as errors in one direction do; others do not.
        self._pairs = {
            (a, b): strength * np.sqrt(self.effects[a] * self.effects[b])
            for a, b in itertools.combinations(range(1, EFFECTS), 2)
            if (a - b) % CHOICES == 0
        }

    def values(self, columns: Columns) -> Vector:
        return np.array(
            [self.effects[row].sum() + sum(self._pairs.get(pair, 0.0) for pair in itertools.combinations(row, 2))
             for row in columns.tolist()]
        )  # fmt: skip


def taught(truth: Truth, maps: int, seed: int = 1) -> PairInteractions:
    interactions = PairInteractions(model_of(truth.effects))
    for row in random_maps(np.random.default_rng(seed), maps):
        interactions.judge(row[None], truth.values(row[None]))
        interactions.learn(row[None], truth.values(row[None]))
    return interactions


def misses(truth: Truth, interactions: PairInteractions | None) -> float:
    columns = random_maps(np.random.default_rng(2), 200)
    predicted = model_of(truth.effects).predict(columns)
    if interactions:
        predicted = predicted + interactions.correction(columns)
    return float(np.median(np.abs(predicted / truth.values(columns) - 1.0)))


def test_covariances_are_those_of_all_pairs_written_down() -> None:
    generator = np.random.default_rng(0)
    effects = np.append(0.0, generator.uniform(0.1, 1.0, EFFECTS - 1))
    known, columns = random_maps(generator, 4), random_maps(generator, 5)
    pairs = list(itertools.combinations(range(1, EFFECTS), 2))

    def features(maps: Columns) -> Vector:
        return np.array(
            [[np.sqrt(effects[a] * effects[b]) * (a in row and b in row) for a, b in pairs] for row in maps]
        )

    expected = features(known) @ features(columns).T
    np.testing.assert_allclose(_covariance(effects, known, columns), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, -0.15])
def test_pairs_that_cost_more_or_less_together_are_learned(strength: float) -> None:
    truth = Truth(strength)
    interactions = taught(truth, 60)
    assert interactions.strength > 0.0
    assert misses(truth, interactions) < 0.6 * misses(truth, None)


def test_pairs_have_no_effect_where_effects_just_add_up() -> None:
    interactions = taught(Truth(0.0), 60)
    assert interactions.strength == 0.0
    assert not interactions.correction(random_maps(np.random.default_rng(3), 5)).any()


def test_a_few_maps_are_too_few_for_pairs() -> None:
    assert taught(Truth(0.3), 6).strength == 0.0


def test_a_measured_map_is_then_predicted_as_measured() -> None:
    truth = Truth(0.3)
    interactions = taught(truth, 40)
    columns = random_maps(np.random.default_rng(1), 40)[-10:]
    predicted = model_of(truth.effects).predict(columns) + interactions.correction(columns)
    np.testing.assert_allclose(predicted, truth.values(columns), rtol=0.05)


def test_maps_of_the_same_pairs_that_diverge_far_less_than_expected_may_be_learned_together() -> None:
    effects = np.ones(EFFECTS)
    effects[[0, 1, 2, 3]] = 0.0  # the first group costs nothing, so that its choice makes no other pairs
    interactions = PairInteractions(model_of(effects))
    columns = 1 + CHOICES * np.arange(GROUPS) + np.array([[first, *[0] * (GROUPS - 1)] for first in range(CHOICES)])
    for values in (np.full(CHOICES, 1e-9), np.full(CHOICES, 2e-9)) * 3:
        interactions.judge(columns, values)
        interactions.learn(columns, values)
    assert np.isfinite(interactions.correction(columns)).all()
