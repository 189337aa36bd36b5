"""The planner on additive models whose best maps are known."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autotune.metrics.catalog import Constraint
from autotune.metrics.objectives import Objectives
from autotune.metrics.pareto import hypervolume
from autotune.planner.knapsack import Costs, Maps, cheapest_for_each_budget
from autotune.planner.next_map import Planner, _without_risky
from autotune.planner.prior import Prior
from workers.timing.estimates import Figure

CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic")
TWO, THREE = ("latency_ratio", "divergence"), ("latency_ratio", "divergence", "weight_memory_mib")
PERFECT, WRONG = (1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 1 / 3, 3.0)
FULL_MS = 40.0

Figures = Mapping[str, Figure]


def at_most(metric: str, limit: float) -> Constraint:
    return Constraint(metric=metric, limit=limit, at_most=True)


@dataclass(frozen=True, kw_only=True)
class World:
    """Groups whose costs add up, and differ by orders of magnitude."""

    groups: int = 5
    objectives: tuple[str, ...] = TWO
    constraints: tuple[Constraint, ...] = ()
    seed: int = 0

    @cached_property
    def costs(self) -> Costs:
        """Divergence, change of the latency ratio and memory in MiB, shape ``(3, groups, choices)``."""
        generator = np.random.default_rng(self.seed)
        share = generator.dirichlet(np.ones(self.groups))[:, None]
        errors = generator.lognormal(0, 1.5, (self.groups, 1)) * generator.lognormal(0, 0.3, (self.groups, 4))
        divergence = errors / errors.sum(axis=0) * [0, 1e-4, 3e-3, 1e-2]
        latency = share * [0, -0.3, -0.6, -0.5] * generator.lognormal(0, 0.2, (self.groups, 4))
        memory = generator.dirichlet(np.ones(self.groups))[:, None] * [40, 20, 10, 12]
        return np.stack([divergence, latency, memory])

    @cached_property
    def target(self) -> Objectives:
        return Objectives.named(self.objectives)

    @cached_property
    def full(self) -> Figures:
        return self.measure(np.zeros((1, self.groups), dtype=np.intp))[0]

    def planner(self, prior: Sequence[float] = PERFECT, *, probed: bool = True, seed: int = 0) -> Planner:
        divergence, latency, memory = self.costs
        if not probed:
            divergence = np.where(np.arange(4) > 0, 1.0 / self.groups, 0.0) * np.ones((self.groups, 1))
            latency = np.tile([0, -0.25, -0.375, -0.375], (self.groups, 1)) / self.groups
        expected = Prior(
            divergence=divergence * prior, latency=latency, memory_mib=memory,
            fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=0.0, probed=probed,
        )  # fmt: skip
        planner = Planner(expected, [CHOICES] * self.groups, self.target, self.constraints, seed=seed)
        planner.set_full_precision(self.full)
        return planner

    def measure(self, maps: Maps) -> list[Figures]:
        divergence, latency, memory = self.costs[:, np.arange(self.groups), maps].sum(axis=2)
        return [
            {
                "divergence": Figure(value=d), "latency_ratio": Figure(value=1 + r),
                "latency_p50_ms": Figure(value=FULL_MS * (1 + r)), "weight_memory_mib": Figure(value=m),
                "accuracy_drop": Figure(value=2 * d), "accuracy": Figure(value=0.8 * (1 - 2 * d)),
            }
            for d, r, m in zip(divergence, latency, memory, strict=True)
        ]  # fmt: skip

    def feasible(self, figures: Figures) -> bool:
        return all(limit.violation(figures[limit.metric].value) <= 0 for limit in self.constraints)

    def best(self, maps: Maps) -> float:
        """Return the first objective of the best map that keeps the constraints."""
        return min(self.target.values(each)[0] for each in self.measure(maps) if self.feasible(each))

    def volume(self, maps: Maps) -> float:
        kept = [figures for figures in self.measure(maps) if self.feasible(figures)]
        points = self.target.normalise(self.target.points(kept), self.full)
        return hypervolume(points, self.target.reference_point(self.full))

    @cached_property
    def every(self) -> Maps:
        """All maps, or where there are too many those along the front of divergence and latency."""
        if self.groups > 6:
            return cheapest_for_each_budget(self.costs[0], self.costs[1])
        return np.array(list(itertools.product(range(4), repeat=self.groups)))


def none(world: World) -> Maps:
    return np.empty((0, world.groups), dtype=np.intp)


def tell(world: World, planner: Planner, maps: Maps) -> None:
    figures = world.measure(maps)
    planner.observe(maps, figures, [world.feasible(each) for each in figures])


def search(world: World, planner: Planner, proposals: int, *, until_spent: bool = False) -> Maps:
    """Return the uniform maps and those proposed next, all measured."""
    maps = [np.full(world.groups, choice) for choice in range(4)]
    tell(world, planner, np.array(maps))
    while len(maps) < 4 + proposals and not (until_spent and planner.spent):
        proposed = planner.propose(none(world))
        if proposed is None:
            break
        tell(world, planner, proposed[None])
        maps.append(proposed)
    return np.array(maps)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prior", [PERFECT, WRONG], ids=["perfect", "wrong by 3x"])
@pytest.mark.parametrize("objectives", [TWO, THREE], ids=len)
def test_the_front_is_found_within_thirty_maps(objectives: tuple[str, ...], prior: Sequence[float], seed: int) -> None:
    world = World(objectives=objectives, seed=seed)
    assert world.volume(search(world, world.planner(prior), 30)) >= 0.99 * world.volume(world.every)


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_found_though_nothing_was_probed(seed: int) -> None:
    world = World(seed=seed)
    found = search(world, world.planner(probed=False), 40)
    assert world.volume(found) >= 0.98 * world.volume(world.every)
    assert world.volume(found) > world.volume(found[:4])


@pytest.mark.parametrize("prior", [PERFECT, WRONG], ids=["perfect", "wrong by 3x"])
@pytest.mark.parametrize(
    ("objectives", "constraints"),
    [
        (("latency_p50_ms", "divergence"), [at_most("accuracy_drop", 0.004)]),
        (("divergence", "latency_p50_ms"), [at_most("latency_p50_ms", 0.6 * FULL_MS)]),
        (("divergence", "latency_p50_ms"), [at_most("weight_memory_mib", 14.0)]),
        (("latency_ratio", "accuracy"), [Constraint(metric="accuracy", limit=0.799, at_most=False)]),
        (TWO, [at_most("latency_ratio", 0.95), at_most("weight_memory_mib", 16), at_most("accuracy_drop", 0.004)]),
    ],
    ids=["drop", "latency", "memory", "accuracy", "three"],
)
def test_answers_are_close_to_the_best_that_keeps_the_constraints(
    objectives: tuple[str, ...], constraints: list[Constraint], prior: Sequence[float]
) -> None:
    world = World(objectives=objectives, constraints=tuple(constraints), seed=1)
    assert world.volume(world.every[:0]) == 0.0 < world.volume(world.every) < World(seed=1).volume(world.every)
    found = search(world, world.planner(prior), 12)
    assert world.best(found) <= world.best(world.every) + 0.005 * abs(world.best(world.every))
    assert world.volume(found) >= 0.99 * world.volume(world.every)


@pytest.mark.parametrize("limit", [0.45, 0.6])
def test_maps_beyond_a_limit_are_no_distraction(limit: float) -> None:
    world = World(groups=30, objectives=("divergence", "latency_ratio"), constraints=(at_most("latency_ratio", limit),))
    found = search(world, world.planner(), 25)
    assert world.volume(found) >= 0.985 * world.volume(world.every)
    assert sum(map(world.feasible, world.measure(found))) >= 20


@pytest.mark.parametrize("limit", [0.004, 0.01])
def test_the_answer_comes_first(limit: float) -> None:
    world = World(
        groups=30, objectives=("latency_p50_ms", "divergence"), constraints=(at_most("accuracy_drop", limit),)
    )
    assert world.best(search(world, world.planner(), 6)) <= 1.002 * world.best(world.every)


@pytest.mark.parametrize("groups", [5, 30])
@pytest.mark.parametrize("constraints", [(), (at_most("latency_ratio", 0.6),)], ids=["free", "limited"])
def test_the_search_is_spent_when_little_is_left_and_not_before(
    groups: int, constraints: tuple[Constraint, ...]
) -> None:
    world = World(groups=groups, constraints=constraints)
    planner = world.planner()
    found = search(world, planner, 80, until_spent=True)
    assert planner.spent
    assert 8 <= len(found) - 4 < 80
    assert world.volume(found) >= 0.995 * world.volume(world.every)


def test_news_revive_a_spent_search() -> None:
    world = World()
    planner = world.planner()
    found = search(world, planner, 80, until_spent=True)
    assert planner.spent
    # Maps with static int8 turn out to diverge next to nothing.
    news = found[(found == 2).sum(axis=1) >= 2]
    planner.observe(news, [{"divergence": Figure(value=1e-6)}] * len(news), [False] * len(news))
    planner.propose(none(world))
    planner.propose(none(world))  # one of two in a row may be an exploration
    assert not planner.spent


def test_neither_known_nor_pending_nor_failed_maps_are_proposed() -> None:
    world = World(groups=3)
    planner, seen = world.planner(), {(0, 0, 0)}
    pending: list[Maps] = []
    planner.observe(np.zeros((1, 3), dtype=np.intp), [world.full], [True])
    while (proposed := planner.propose(np.array(pending, dtype=np.intp).reshape(-1, 3))) is not None:
        assert tuple(proposed) not in seen
        seen.add(tuple(proposed))
        pending.append(proposed)
        if len(pending) == 3:
            failed, measured, *pending = pending
            planner.observe(failed[None], [{}], [False])
            tell(world, planner, measured[None])
    assert len(seen) > 12


def test_pending_maps_count_as_measured() -> None:
    world = World()
    one, other = world.planner(), world.planner()
    first = one.propose(none(world))
    assert first is not None
    second = one.propose(first[None])
    assert second is not None
    other.propose(none(world))
    unaware = other.propose(none(world))
    assert unaware is not None
    assert unaware.tolist() == first.tolist()
    assert np.count_nonzero(second != first) > 1  # not the next best neighbour of what is being measured


@pytest.mark.parametrize("last", [(0, 0), (0, 3)], ids=["on the front", "beside it"])
def test_a_space_is_used_up(last: tuple[int, int]) -> None:
    world = World(groups=2)
    planner, is_last = world.planner(), (world.every == last).all(axis=1)
    tell(world, planner, world.every[~is_last])
    found = {tuple(each) for _ in range(20) if (each := planner.propose(none(world))) is not None}
    assert found == {last}
    assert planner.propose(world.every[is_last]) is None
    tell(world, planner, world.every[is_last])
    assert planner.propose(none(world)) is None


def test_same_seed_same_proposals() -> None:
    world = World(groups=16, constraints=(at_most("latency_ratio", 0.7),))
    one, again, other = (search(world, world.planner(seed=seed), 20).tolist() for seed in (3, 3, 4))
    assert one == again != other


@pytest.mark.parametrize("objectives", [TWO, ("latency_p50_ms", "divergence"), ("divergence", "latency_ratio")])
@pytest.mark.parametrize(
    ("limit", "metric"),
    [(0.2, "latency_ratio"), (0.2 * FULL_MS, "latency_p50_ms"), (1e-9, "accuracy_drop"), (1.0, "weight_memory_mib")],
)
def test_where_nothing_is_feasible_the_search_goes_to_the_least_infeasible(
    limit: float, metric: str, objectives: tuple[str, ...]
) -> None:
    world = World(groups=4, objectives=objectives, constraints=(at_most(metric, limit),))
    planner = world.planner()
    found = search(world, planner, 12)[4:]
    values, all_values = ([each[metric].value for each in world.measure(maps)] for maps in (found, world.every))
    assert len(np.unique(found, axis=0)) == 12
    if metric != "weight_memory_mib":  # known beforehand, so that those maps never run
        assert np.median(values) <= np.quantile(all_values, 0.1)


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=len)
def test_the_predicted_front_is_the_true_one_where_the_prior_is(objectives: tuple[str, ...]) -> None:
    world = World(objectives=objectives)
    assert world.volume(world.planner().predicted_front()) >= 0.999 * world.volume(world.every)


def test_a_limit_that_all_maps_keep_costs_no_maps() -> None:
    free, limited = World(), World(constraints=(at_most("latency_ratio", 5.0),))
    volumes = [world.volume(search(world, world.planner(), 8)) for world in (free, limited)]
    assert volumes[1] >= 0.995 * volumes[0]


def test_the_accepted_risk_falls_with_every_miss_of_a_proposed_map_and_rises_with_every_hit() -> None:
    world = World(
        groups=30, objectives=("latency_p50_ms", "divergence"), constraints=(at_most("accuracy_drop", 0.004),)
    )
    planner = world.planner()
    search(world, planner, 0)  # uniform maps that miss the limit say nothing of the planner's own
    risks = [planner._risk]
    for kept in (False, False, True, True, True):
        proposed = planner.propose(none(world))
        assert proposed is not None
        planner.observe(proposed[None], world.measure(proposed[None]), [kept])
        risks.append(planner._risk)
    assert risks == pytest.approx([0.3, 0.18, 0.108, 0.18, 0.3, 0.5])


@pytest.mark.parametrize(
    ("likely", "risk", "kept"),
    [
        ([0.9, 0.6, 0.4], 0.5, [True, True, False]),
        ([0.9, 0.6, 0.4], 0.3, [True, False, False]),
        ([0.4, 0.2, 0.35], 0.3, [True, True, True]),  # all are too risky: the least risky, give or take one half
        ([0.8, 0.5], 0.1, [True, False]),
    ],
)
def test_only_maps_within_the_accepted_risk_keep_their_chance(
    likely: list[float], risk: float, kept: list[bool]
) -> None:
    found = _without_risky(np.array(likely), risk)
    assert (found > 1e-6).tolist() == kept
    assert found[kept].tolist() == np.array(likely)[kept].tolist()


#: Groups with few choices, of any names in the order of ``CHOICES``.
GROUPS = st.sets(st.sampled_from(CHOICES), min_size=1).map(lambda names: sorted(names, key=CHOICES.index))
SPACES = st.lists(GROUPS, min_size=1, max_size=4)
#: Costs from nothing over equal ones to those of any size.
TABLES = st.sampled_from([0.0, 1.0]).map(lambda value: np.full((4, 4), value)) | arrays(
    np.float64, (4, 4), elements=st.sampled_from([0.0, 1e-12, 1e-4, 0.1, 1.0, 100.0])
)
DIVERGENCES, RATIOS = st.sampled_from([0.0, 1e-12, 1e-4, 0.1, 30.0]), st.sampled_from([0.2, 0.9, 1.0, 3.0])


@given(SPACES, TABLES, TABLES, TABLES, st.booleans(), st.sampled_from([TWO, THREE]), st.data())
@settings(deadline=None, max_examples=60)
def test_new_maps_of_the_space_are_proposed_whatever_is_expected_and_measured(
    space: list[list[str]], divergence: Costs, latency: Costs, memory: Costs, probed: bool,
    objectives: tuple[str, ...], data: st.DataObject,
) -> None:  # fmt: skip
    groups, sizes = len(space), np.array([len(names) for names in space])
    legal = np.arange(sizes.max()) < sizes[:, None]
    tables = (np.where(legal, table[:groups, : sizes.max()], np.inf) for table in (divergence, -latency, memory))
    costs = dict(zip(("divergence", "latency", "memory_mib"), tables, strict=True))
    prior = Prior(**costs, fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=0.0, probed=probed)
    limits = data.draw(st.sampled_from([(), (at_most("accuracy_drop", 0.01),), (at_most("latency_ratio", 0.5),)]))
    planner = Planner(prior, space, Objectives.named(objectives), limits, seed=0)
    full = {"latency_ratio": 1.0, "accuracy": 0.8, "divergence": 0.0, "accuracy_drop": 0.0, "weight_memory_mib": 8.0}
    planner.set_full_precision({name: Figure(value=value) for name, value in full.items()})
    seen: set[tuple[int, ...]] = set()
    for _ in range(6):
        proposed = planner.propose(np.empty((0, groups), dtype=np.intp))
        if proposed is None:
            break
        assert tuple(proposed) not in seen
        assert (proposed >= 0).all()
        assert (proposed < sizes).all()
        seen.add(tuple(proposed.tolist()))
        found = full | {"divergence": data.draw(DIVERGENCES), "latency_ratio": data.draw(RATIOS)}
        figures = {name: Figure(value=value) for name, value in found.items()}
        planner.observe(proposed[None], [figures if data.draw(st.booleans()) else {}], [False])


NONE = np.empty((0, 5), dtype=np.intp)


def test_a_backend_whose_maps_are_dominated_promises_nothing() -> None:
    world = World()
    alone, beside = world.planner(), world.planner()
    assert alone.promise == beside.promise == math.inf
    best = world.measure(cheapest_for_each_budget(world.costs[0], world.costs[1]))
    for figures in best:  # another backend has the whole front, at half the latency
        beside.add_rival(figures | {name: figures[name].scaled(0.5) for name in ("latency_ratio", "latency_p50_ms")})
    for planner in (alone, beside):
        planner.propose(NONE)
    assert beside.promise < 0.01 * alone.promise


def test_gains_on_all_backends_are_on_the_scale_of_the_reference() -> None:
    world = World()
    planners = own, same, slower = world.planner(), world.planner(), world.planner()
    same.set_scale(world.full)
    slower.set_scale(world.full | {name: world.full[name].scaled(4.0) for name in ("latency_ratio", "latency_p50_ms")})
    for planner in planners:
        planner.add_rival(world.measure(np.full((1, 5), 1))[0])
        planner.propose(NONE)
    assert same.promise == own.promise
    assert slower.promise < own.promise, "beside a slow reference the same milliseconds are a smaller gain"
