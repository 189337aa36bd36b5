"""Predictions for maps: first those of the prior, then those that measured maps correct."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from autotune.planner.additive_model import Vector
from autotune.planner.knapsack import Costs, Maps
from autotune.planner.posterior import Posterior, traded_off
from autotune.planner.prior import Prior
from workers.measurement import Split, Workload
from workers.timing.estimates import Figure

#: The last group has two of the four choices, so its second is not that of the others.
CHOICES = [("fp32", "bf16", "int8_static", "int8_dynamic")] * 5 + [("fp32", "int8_dynamic")]
SIZES = np.arange(1.0, 7.0)[:, None] / 21
FULL = {
    "latency_p50_ms": Figure(value=10.0), "latency_p95_ms": Figure(value=12.0), "latency_ratio": Figure(value=1.0),
    "accuracy": Figure(value=0.8), "weight_memory_mib": Figure(value=30.0), "peak_memory_mib": Figure(value=70.0),
}  # fmt: skip


def of_choices(*values: float) -> Costs:
    """Return costs of every group's choices in proportion to its size, infinite where it lacks them."""
    costs: Costs = SIZES * np.array(values)
    costs[5, :2] = costs[5, [0, 3]]
    costs[5, 2:] = np.inf
    return costs


#: The truth: what each choice costs if all groups take it.
TRUTH = Prior(
    divergence=of_choices(0.0, 1e-5, 1e-3, 3e-3), latency=of_choices(0.0, -0.2, -0.6, -0.4),
    memory_mib=of_choices(20.0, 10.0, 5.0, 5.0), fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=10.0,
    probed=True,
)  # fmt: skip
WRONG = replace(
    TRUTH, divergence=of_choices(0.0, 3e-5, 3e-4, 1e-3), latency=of_choices(0.0, -0.25, -0.5, -0.5),
)  # fmt: skip
#: No scale of errors, and half of the time in layers.
GUESS = replace(
    TRUTH, divergence=of_choices(0.0, 1.0, 1.0, 1.0), latency=of_choices(0.0, -0.25, -0.375, -0.375), probed=False
)  # fmt: skip
LEGAL = np.isfinite(TRUTH.memory_mib)


def uniform(choice: str) -> Maps:
    return np.array([[names.index(choice) if choice in names else 0 for names in CHOICES]])


UNIFORM = np.concatenate([uniform(choice) for choice in CHOICES[0]])
OTHERS = np.random.default_rng(0).integers([len(names) for names in CHOICES], size=(50, len(CHOICES)))


def sums(costs: Costs, maps: Maps) -> Vector:
    return np.asarray(costs[np.arange(6), maps].sum(axis=1))


def mixing(maps: Maps) -> Vector:
    """Return what is expected of changes of precision between neighbours; static and dynamic int8 are one precision."""
    precisions = np.where(np.arange(6) == 5, 2 * np.minimum(maps, 1), np.minimum(maps, 2))
    return np.asarray(0.03 * ((np.diff(precisions, axis=1) != 0).mean(axis=1)) ** 0.4)


def measure(maps: Maps, truth: Prior = TRUTH) -> list[Mapping[str, Figure]]:
    divergence = sums(truth.divergence, maps) + truth.fixed_divergence
    ratio = sums(truth.latency, maps) + 1 + truth.fixed_latency
    return [
        {"divergence": Figure(value=d), "latency_ratio": Figure(value=r), "accuracy_drop": Figure(value=4 * d)}
        for d, r in zip(divergence, ratio, strict=True)
    ]


def believe(prior: Prior, maps: Maps = UNIFORM[:0], truth: Prior = TRUTH) -> Posterior:
    posterior = Posterior(prior, CHOICES)
    posterior.full_precision = FULL
    if len(maps):
        posterior.observe(maps, measure(maps, truth))
    return posterior


def test_before_anything_is_measured_the_prior_holds() -> None:
    found = believe(replace(TRUTH, fixed_divergence=0.5, fixed_latency=-0.1)).predict(OTHERS)
    ratio, memory = 0.9 + sums(TRUTH.latency, OTHERS) + mixing(OTHERS), 10.0 + sums(TRUTH.memory_mib, OTHERS)
    np.testing.assert_allclose(found["divergence"], 0.5 + sums(TRUTH.divergence, OTHERS))
    np.testing.assert_allclose(found["latency_ratio"], ratio)
    np.testing.assert_allclose(found["latency_p50_ms"], 10.0 * ratio)
    np.testing.assert_allclose(found["latency_p95_ms"], 12.0 * ratio)
    np.testing.assert_allclose(found["weight_memory_mib"], memory)
    np.testing.assert_allclose(found["peak_memory_mib"], 40.0 + memory)
    np.testing.assert_allclose(found["accuracy"], 0.8)


def test_costs_are_first_those_of_the_prior() -> None:
    expected = np.stack([TRUTH.divergence, TRUTH.latency, TRUTH.memory_mib])
    np.testing.assert_allclose(believe(TRUTH).costs(), expected)


@pytest.mark.parametrize("prior", [TRUTH, WRONG, GUESS], ids=["true", "wrong", "guessed"])
def test_uniform_maps_correct_all_others(prior: Prior) -> None:
    posterior = believe(prior, UNIFORM)
    found = posterior.predict(OTHERS)
    np.testing.assert_allclose(found["divergence"], sums(TRUTH.divergence, OTHERS), rtol=0.2)
    ratio = 1.0 + sums(TRUTH.latency, OTHERS) + mixing(OTHERS)  # uniform maps say nothing of that
    np.testing.assert_allclose(found["latency_ratio"], ratio, rtol=0.03)
    np.testing.assert_allclose(found["accuracy_drop"], 4.0 * found["divergence"], rtol=0.05, atol=5e-4)
    np.testing.assert_allclose(found["accuracy"], 0.8 * (1.0 - 4.0 * found["divergence"]), rtol=5e-4)
    for metric in ("latency_ratio", "accuracy"):
        assert (posterior.deviation(metric, OTHERS) < believe(prior).deviation(metric, OTHERS)).all()


@pytest.mark.parametrize("prior", [WRONG, GUESS], ids=["probed", "guessed"])
def test_the_prior_of_fixed_layers_may_be_wrong(prior: Prior) -> None:
    truth = replace(TRUTH, fixed_divergence=2e-3, fixed_latency=-0.1)
    pinned = {True: replace(prior, fixed_divergence=1e-3, fixed_latency=-0.12),
              False: replace(prior, fixed_divergence=1.0, fixed_latency=-0.12)}[prior.probed]  # fmt: skip
    found = believe(pinned, UNIFORM, truth).predict(OTHERS)
    np.testing.assert_allclose(found["divergence"], 2e-3 + sums(TRUTH.divergence, OTHERS), rtol=0.2)
    np.testing.assert_allclose(found["latency_ratio"], 0.9 + sums(TRUTH.latency, OTHERS), rtol=0.05)


@pytest.mark.parametrize("choice", CHOICES[0][1:])
def test_one_uniform_map_gives_guesses_their_scale(choice: str) -> None:
    posterior = believe(GUESS, uniform(choice))
    half = np.where(np.arange(6) % 2, uniform(choice), 0)
    np.testing.assert_allclose(posterior.predict(half)["divergence"], sums(TRUTH.divergence, half), rtol=0.01)
    assert posterior.costs()[0][LEGAL].max() > 0.1  # the other choices have none yet


def test_guesses_of_fixed_layers_have_the_scale_of_the_first_choice() -> None:
    truth = replace(TRUTH, fixed_divergence=1e-3 * 15 / 21)
    posterior = believe(replace(GUESS, fixed_divergence=15 / 21), uniform("int8_static"), truth)
    assert posterior.predict(UNIFORM[:1])["divergence"] == pytest.approx(truth.fixed_divergence, rel=0.01)
    posterior.observe(uniform("bf16"), measure(uniform("bf16"), truth))
    assert posterior.costs()[0][:5, 1].sum() < 2e-4


def test_guesses_of_a_choice_that_costs_nothing_can_still_be_corrected() -> None:
    half = np.where(np.arange(6) % 2, uniform("bf16"), 0)
    posterior = believe(GUESS)
    posterior.observe(uniform("bf16"), [{"divergence": Figure(value=0.0)}])
    assert posterior.predict(half)["divergence"] < 1e-6
    posterior.observe(half, [{"divergence": Figure(value=1e-6)}])
    assert posterior.predict(half)["divergence"] > 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_guesses_need_not_begin_with_uniform_maps(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(OTHERS))[:8]
    posterior = believe(GUESS)
    for row in [*OTHERS[order], *UNIFORM]:
        posterior.observe(row[None], measure(row[None]))
    found = posterior.predict(UNIFORM)["divergence"]
    np.testing.assert_allclose(found[2:], sums(TRUTH.divergence, UNIFORM[2:]), rtol=0.3)
    assert (posterior.costs()[0][LEGAL] >= 0).all()


@pytest.mark.parametrize(("prior", "known"), [(TRUTH, UNIFORM[:0]), (GUESS, UNIFORM)], ids=["probed", "guessed"])
def test_no_choice_is_ever_expected_to_lower_the_divergence(prior: Prior, known: Maps) -> None:
    posterior = believe(prior, known)
    for row in np.concatenate([UNIFORM, OTHERS[:5]]):
        posterior.observe(row[None], [{"divergence": Figure(value=0.0)}])
    drawn = [posterior.costs(np.random.default_rng(seed))[0] for seed in range(20)]
    least = 0.08 * TRUTH.divergence[LEGAL]  # a tenth of what was expected, or of how that was scaled
    for divergence in [posterior.costs()[0], *drawn]:
        assert (divergence[LEGAL] >= least).all()
    assert (posterior.predict(OTHERS)["divergence"] >= 0.08 * sums(TRUTH.divergence, OTHERS)).all()


def test_drawn_costs_spread_around_the_expected_ones() -> None:
    posterior, generator = believe(WRONG, UNIFORM), np.random.default_rng(0)
    drawn = np.array([posterior.costs(generator) for _ in range(300)])[:, 1, LEGAL]
    deviation = drawn.std(axis=0)
    np.testing.assert_allclose(drawn.mean(axis=0), posterior.costs()[1][LEGAL], atol=0.3 * deviation.max())
    assert (deviation[TRUTH.latency[LEGAL] != 0] > 0).all()
    assert np.isinf(posterior.costs(generator)[:, ~LEGAL]).all()


def test_a_figure_counts_by_its_interval() -> None:
    row = uniform("int8_static")
    wide, narrow = ([{"latency_ratio": Figure(value=0.3, low=0.3 - half, high=0.3 + half)}] for half in (0.5, 0.001))
    found = []
    for figures in (wide, narrow):
        posterior = believe(WRONG)
        posterior.observe(row, figures)
        found.append((posterior.predict(row)["latency_ratio"][0], posterior.deviation("latency_ratio", row)[0]))
    assert found[1][0] == pytest.approx(0.3, abs=0.01)
    assert found[0][0] > 0.5
    assert found[0][1] > 3 * found[1][1]


def test_deviations_are_in_the_units_of_the_metric() -> None:
    posterior = believe(WRONG, UNIFORM)
    ratio = posterior.deviation("latency_ratio", OTHERS)
    assert (ratio >= 0.01).all()  # the percentiles' own
    np.testing.assert_allclose(posterior.deviation("latency_p95_ms", OTHERS), 12.0 * ratio)
    np.testing.assert_allclose(
        posterior.deviation("accuracy", OTHERS), 0.8 * posterior.deviation("accuracy_drop", OTHERS)
    )
    np.testing.assert_array_equal(posterior.deviation("weight_memory_mib", OTHERS), 0.0)


@pytest.mark.parametrize("prior", [TRUTH, GUESS], ids=["probed", "guessed"])
def test_figures_may_be_missing(prior: Prior) -> None:
    complete = believe(prior, UNIFORM).predict(OTHERS)
    posterior = believe(prior)
    posterior.observe(UNIFORM[:2], [{}, {"weight_memory_mib": Figure(value=20.0)}])
    posterior.observe(UNIFORM, measure(UNIFORM))
    for metric, values in posterior.predict(OTHERS).items():
        np.testing.assert_allclose(values, complete[metric])


def test_maps_that_diverge_by_nothing_may_be_observed_together() -> None:
    idle = 100 * TRUTH.divergence
    idle[0, :] = 0.0  # the outputs do not depend on the first group
    maps = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    posterior = believe(replace(TRUTH, divergence=idle))
    posterior.observe(maps, [{"divergence": Figure(value=0.0)}] * 3)
    np.testing.assert_allclose(posterior.predict(OTHERS)["divergence"], sums(idle, OTHERS), atol=1e-6)


@pytest.mark.parametrize("factor", [1 / 3000, 1 / 30, 30])
def test_probes_of_another_scale_are_scaled_by_uniform_maps(factor: float) -> None:
    probes = replace(TRUTH, divergence=np.where(LEGAL, factor * TRUTH.divergence, np.inf))
    posterior = believe(probes)
    for row in UNIFORM:
        posterior.observe(row[None], measure(row[None]))
    np.testing.assert_allclose(posterior.predict(OTHERS)["divergence"], sums(TRUTH.divergence, OTHERS), rtol=0.15)


def test_a_layer_that_was_probed_to_cost_nothing_may_cost_something() -> None:
    probed = TRUTH.divergence.copy()
    probed[3] = 0.0
    posterior = believe(replace(TRUTH, divergence=probed), np.concatenate([UNIFORM, OTHERS[:30]]))
    cost = posterior.costs()[0][3]
    assert cost[0] == 0.0
    np.testing.assert_allclose(cost[2:], TRUTH.divergence[3, 2:], rtol=0.2)


def test_prices_of_changes_are_what_one_more_costs() -> None:
    posterior, shares = believe(TRUTH), (0.005, 0.03, 0.3)
    # The cost of a share of the five neighbouring pairs is 0.03 share^0.4; one more pair is a fifth more.
    slopes = [0.03 * ((share + 1e-7) ** 0.4 - (share - 1e-7) ** 0.4) / 2e-7 for share in shares]
    np.testing.assert_allclose(posterior.change_prices(), np.array(slopes) / 5.0, rtol=1e-5)


def test_changes_that_cost_nothing_have_no_price() -> None:
    posterior = believe(TRUTH, np.concatenate([UNIFORM, OTHERS]))  # measured maps just add up
    assert posterior.change_prices() == []
    np.testing.assert_allclose(
        posterior.predict(OTHERS)["latency_ratio"], 1.0 + sums(TRUTH.latency, OTHERS), atol=0.005
    )


def test_latencies_under_load_follow_those_of_requests() -> None:
    posterior = Posterior(TRUTH, CHOICES, ["queued_latency_p95_ms", "accuracy"])
    full = {"request_latency_ratio": 1.0, "request_latency_p50_ms": 50.0, "queued_latency_p95_ms": 400.0}
    posterior.full_precision = FULL | {name: Figure(value=value) for name, value in full.items()}
    before = posterior.predict(OTHERS)
    np.testing.assert_allclose(before["queued_latency_p95_ms"], 400.0 * before["request_latency_ratio"])
    np.testing.assert_allclose(before["request_latency_p50_ms"], 50.0 * before["request_latency_ratio"])
    row = uniform("int8_static")
    posterior.observe(row, [{"request_latency_ratio": Figure(value=0.5), "queued_latency_p95_ms": Figure(value=100.0)}])
    # A measured quarter of the response time at half of the latency: beyond it, both shrink alike.
    assert posterior.predict(row)["queued_latency_p95_ms"] == pytest.approx(100.0, rel=0.05)
    assert posterior.workloads == (Workload.REQUEST,)


def test_latencies_of_decoding_are_guessed_from_the_bytes_that_it_reads() -> None:
    posterior = Posterior(replace(TRUTH, fixed_latency=-0.1), CHOICES, ["decode_latency_p50_ms", "divergence"])
    posterior.full_precision = FULL
    found = posterior.predict(OTHERS)
    # Half of the time is in proportion to the layers' weights, of which full precision has 20 MiB; the probes, which
    # timed whole passes, do not count.
    expected = 1.0 - 0.5 * (20.0 - sums(TRUTH.memory_mib, OTHERS)) / 20.0 + mixing(OTHERS)
    np.testing.assert_allclose(found["decode_latency_ratio"], expected)
    np.testing.assert_allclose(found["latency_ratio"], 0.9 + sums(TRUTH.latency, OTHERS) + mixing(OTHERS))


def test_layers_without_weights_leave_the_latency_of_decoding_alone() -> None:
    weightless = replace(TRUTH, memory_mib=np.where(LEGAL, 0.0, np.inf))
    posterior = Posterior(weightless, CHOICES, ["decode_latency_p50_ms", "divergence"])
    posterior.full_precision = FULL
    np.testing.assert_allclose(posterior.predict(OTHERS)["decode_latency_ratio"], 1.0 + mixing(OTHERS))


def test_maps_keep_a_tenth_of_the_divergence_of_fixed_layers() -> None:
    posterior = believe(replace(TRUTH, fixed_divergence=0.5))
    for _ in range(5):
        posterior.observe(OTHERS, [{"divergence": Figure(value=1e-12)}] * len(OTHERS))
    assert (posterior.predict(OTHERS)["divergence"] >= 0.1 * 0.5).all()


@pytest.mark.parametrize(
    ("metrics", "splits", "workloads"),
    [
        ([], [Split.EVALUATION], [Workload.FORWARD]),
        (["latency_p50_ms", "weight_memory_mib"], [Split.EVALUATION], [Workload.FORWARD]),
        (["shifted_divergence", "decode_latency_ratio"], [Split.SHIFTED], [Workload.DECODE]),
        (
            ["accuracy", "shifted_accuracy", "accuracy_drop", "queued_latency_p95_ms", "latency_ratio"],
            [Split.EVALUATION, Split.SHIFTED],
            [Workload.REQUEST, Workload.FORWARD],
        ),
    ],
)
def test_only_the_data_and_workloads_of_the_metrics_are_traded_off(
    metrics: list[str], splits: list[Split], workloads: list[Workload]
) -> None:
    assert traded_off(metrics) == (tuple(splits), tuple(workloads))


def scaled(figures: Sequence[Mapping[str, Figure]], factor: float) -> list[Mapping[str, Figure]]:
    return [{**each, "latency_ratio": each["latency_ratio"].scaled(factor)} for each in figures]


def test_on_a_backend_twice_as_fast_as_the_reference_all_ratios_halve() -> None:
    reference, other = believe(WRONG, UNIFORM), Posterior(WRONG, CHOICES)
    halved = FULL | {name: FULL[name].scaled(0.5) for name in ("latency_p50_ms", "latency_p95_ms", "latency_ratio")}
    other.full_precision = halved
    other.observe(UNIFORM, scaled(measure(UNIFORM), 0.5))
    there, here = other.predict(OTHERS), reference.predict(OTHERS)
    for name in ("latency_ratio", "latency_p50_ms", "latency_p95_ms"):
        np.testing.assert_allclose(there[name], 0.5 * here[name])
        np.testing.assert_allclose(other.deviation(name, OTHERS), 0.5 * reference.deviation(name, OTHERS))
    np.testing.assert_allclose(there["divergence"], here["divergence"])
    np.testing.assert_allclose(other.costs(), reference.costs())
