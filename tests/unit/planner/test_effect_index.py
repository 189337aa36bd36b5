"""How effects are numbered, how far their prior may be off, and what a figure says about them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.planner.additive_model import AdditiveModel
from autotune.planner.effect_index import EffectIndex, observe
from autotune.planner.knapsack import Costs
from workers.timing.estimates import Figure

NAMES = ("fp32", "bf16", "int8_static")
#: The second group has no bf16, so its int8 has another number in it than in the other groups.
CHOICES = [NAMES, ("fp32", "int8_static"), NAMES]
LEGAL = np.array([[True, True, True], [True, True, False], [True, True, True]])
INDEX = EffectIndex(LEGAL, CHOICES)
MAPS = np.array(list(itertools.product(*(range(len(names)) for names in CHOICES))))
#: Effects of 0 for full precision; the median of the others is 4.
PRIOR = np.where(LEGAL, [[0.0, 1.0, 2.0], [0.0, 4.0, 0.0], [0.0, 8.0, 16.0]], np.inf)


def model(
    prior: Costs = PRIOR,
    spreads: tuple[float, float] = (0.0, 0.0),
    *,
    certain: float = 0.0,
    fixed: float = 0.0,
    extra: tuple[float, float] | None = None,
) -> AdditiveModel:
    return INDEX.model(prior, spreads, certain=certain, fixed=fixed, extra=extra)


def deviation(model: AdditiveModel, *choices: int) -> float:
    return float(model.deviation(INDEX.of(np.array([choices])))[0])


def test_every_choice_of_every_group_has_its_own_effect() -> None:
    assert INDEX.of(np.array([[0, 0, 0], [1, 1, 1], [2, 0, 2]])).tolist() == [[1, 4, 6], [2, 5, 7], [3, 4, 8]]
    for choices, effects in zip(MAPS, INDEX.of(MAPS), strict=True):
        names = [of_group[choice] for of_group, choice in zip(CHOICES, choices, strict=True)]
        assert [INDEX.names[effect - 1] for effect in effects] == names


@given(st.lists(st.floats(-10.0, 10.0), min_size=9, max_size=9))
def test_costs_are_the_effects_of_their_choices(effects: list[float]) -> None:
    costs = INDEX.spread_out(np.array(effects))
    np.testing.assert_array_equal(np.isinf(costs), ~LEGAL)
    for choices, numbers in zip(MAPS, INDEX.of(MAPS), strict=True):
        assert costs[np.arange(3), choices].tolist() == [effects[number] for number in numbers]


def test_a_sum_is_first_expected_to_be_that_of_the_prior() -> None:
    expected = 1.0 + 0.5 + PRIOR[np.arange(3), MAPS].sum(axis=1)
    np.testing.assert_allclose(model(certain=1.0, fixed=0.5).predict(INDEX.of(MAPS)), expected)
    np.testing.assert_allclose(
        model(certain=1.0, fixed=0.5, extra=(3.0, 1.0)).predict(INDEX.of(MAPS), np.full((len(MAPS), 1), 0.5)),
        expected + 1.5,
    )


@pytest.mark.parametrize(
    ("spreads", "fixed", "choices", "squares"),
    [
        # The constant is off by 0.02 of the median effect, which is 4, and every other effect by 0.05 of it.
        ((0.0, 0.0), 0.0, (0, 0, 0), [0.08]),
        ((0.0, 0.0), 0.0, (1, 1, 1), [0.08, 0.2, 0.2, 0.2]),
        # Effects of their own are off by their shares of 1, 4 and 16.
        ((0.5, 0.0), 0.0, (1, 1, 2), [0.08, 0.7, 2.2, 8.2]),
        # All effects share one factor, and those of one choice another: int8 of 4 + 16, and bf16 of 1.
        ((0.0, 0.5), 0.0, (1, 1, 2), [0.08, 0.2, 0.2, 0.2, 0.5 * 21.0, 0.5 * 20.0, 0.5 * 1.0]),
        # What is fixed is off by both shares.
        ((0.3, 0.4), 10.0, (0, 0, 0), [0.08, 5.0]),
    ],
    ids=["full precision", "no spread", "each", "shared", "fixed"],
)
def test_priors_are_off_by_independent_parts(
    spreads: tuple[float, float], fixed: float, choices: tuple[int, ...], squares: list[float]
) -> None:
    assert deviation(model(spreads=spreads, fixed=fixed), *choices) == pytest.approx(np.linalg.norm(squares))


def test_what_is_certain_adds_no_doubt() -> None:
    assert deviation(model(certain=100.0), 0, 0, 0) == deviation(model(), 0, 0, 0)


@given(st.floats(0.01, 100.0), st.booleans())
def test_doubt_does_not_depend_on_the_unit(unit: float, extra: bool) -> None:
    one, other = (
        model(scale * PRIOR, (0.3, 0.2), fixed=scale * 2.0, extra=(0.0, 0.0) if extra else None)
        for scale in (1.0, unit)
    )
    columns, features = INDEX.of(MAPS), np.zeros((len(MAPS), 1)) if extra else None
    np.testing.assert_allclose(other.deviation(columns, features), unit * one.deviation(columns, features))


@pytest.mark.parametrize(
    ("others", "size"),
    [((3.0, 9.0), 6.0), ((0.0, 9.0), 9.0), ((0.0, 0.0), 5.0)],
    ids=["the median of its choice", "zeros do not count", "the median of all if its choice has none"],
)
def test_an_estimate_of_zero_may_be_as_wrong_as_others_are_large(others: tuple[float, float], size: float) -> None:
    # bf16 has an effect of 5 and none, so that the median of all is 5 if int8 has no other.
    prior = np.where(LEGAL, [[0.0, 5.0, others[0]], [0.0, 0.0, 0.0], [0.0, 0.0, others[1]]], np.inf)
    doubted = model(prior)
    own = deviation(doubted, 0, 1, 0) ** 2 - deviation(doubted, 0, 0, 0) ** 2
    assert own == pytest.approx(size**2)


@pytest.mark.parametrize("extra", [None, (0.03, 0.05)])
def test_nothing_is_doubted_where_nothing_has_an_effect(extra: tuple[float, float] | None) -> None:
    # As if all choices took equally many bytes, from which latencies of decoding are guessed.
    nothing = model(np.where(LEGAL, 0.0, np.inf), (0.5, 0.5), extra=extra)
    features = None if extra is None else np.ones((len(MAPS), 1))
    np.testing.assert_allclose(nothing.deviation(INDEX.of(MAPS), features), 0.0 if extra is None else 0.05)


def test_latencies_of_one_shape_are_off_together() -> None:
    # int8 has the same effect of -2 in the first two groups, as if their layers had one shape.
    prior = np.where(LEGAL, [[0.0, -1.0, -2.0], [0.0, -2.0, 0.0], [0.0, -1.0, -4.0]], np.inf)
    alike, alone = (model(prior, extra=extra) for extra in ((0.0, 0.0), None))
    none = np.zeros((len(MAPS), 1))

    def added(*choices: int) -> float:
        columns = INDEX.of(np.array([choices]))
        return float(np.sqrt(alike.deviation(columns, none[:1])[0] ** 2 - alone.deviation(columns)[0] ** 2))

    # A tenth of the effect, and half of the median effect, which is 2.
    of_two, of_four = 0.1 * 2.0 + 0.5 * 2.0, 0.1 * 4.0 + 0.5 * 2.0
    assert added(2, 0, 0) == pytest.approx(of_two)
    assert added(2, 1, 0) == pytest.approx(2.0 * of_two)
    assert added(0, 1, 2) == pytest.approx(np.hypot(of_two, of_four))


@pytest.mark.parametrize(
    ("figure", "noise"),
    [
        (Figure(value=2.0, low=2.0 - 1.96, high=2.0 + 1.96), 1.0),
        (Figure(value=2.0, low=1.0, high=1.0 + 2 * 3.92), 2.0),
        (Figure(value=2.0), 0.0),
        (Figure(value=2.0, low=1.0), 0.0),
    ],
    ids=["an interval", "one to a side", "none", "half of one"],
)
@pytest.mark.parametrize("misfit", [0.0, 0.25])
def test_a_figure_counts_by_its_interval_and_the_misfit_of_sums(figure: Figure, noise: float, misfit: float) -> None:
    # One uncertain effect: the mean moves by the share of its variance in that of the value.
    spread = np.zeros(9)
    spread[5] = 3.0
    learning = AdditiveModel(np.zeros(9), spread, np.zeros((1, 9)))
    observe(learning, INDEX.of(np.array([[0, 1, 0]])), [{"divergence": figure}], "divergence", misfit)
    share = 9.0 / (9.0 + noise**2 + (misfit * 2.0) ** 2)
    assert learning.mean[5] == pytest.approx(2.0 * share)


def test_only_maps_with_the_metric_are_learned_from_each_with_its_feature() -> None:
    columns, features = INDEX.of(MAPS[:3]), np.array([[1.0], [2.0], [3.0]])
    some, all_of_them = (model(spreads=(0.5, 0.5), extra=(0.1, 0.2)) for _ in range(2))
    observe(some, columns, [{}, {"divergence": Figure(value=7.0)}, {}], "divergence", 0.1, features)
    observe(all_of_them, columns[1:2], [{"divergence": Figure(value=7.0)}], "divergence", 0.1, features[1:2])
    np.testing.assert_allclose(some.mean, all_of_them.mean)
    before = some.mean.copy()
    observe(some, columns, [{"accuracy": Figure(value=7.0)}] * 3, "divergence", 0.1, features)
    np.testing.assert_array_equal(some.mean, before)
