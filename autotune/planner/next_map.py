"""Chooses the map to measure next from the posterior of all maps.

The knapsack builds maps along the whole predicted front. The planner takes the map with the highest
expected hypervolume gain, weighted by its probability of meeting the constraints. With constraints,
every other map aims at the answer itself: the best first objective that meets them.

Limits are bracketed. The best predicted map lies at a limit, and of many predictions the best is the most flattered, so
the planner would miss the limit again and again. After every miss, the next map must meet the limits with a higher
probability; after every map that does, the next one may take a higher risk.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autotune.metrics.catalog import METRICS, Constraint, Kind
from autotune.metrics.objectives import Objectives, minimised
from autotune.metrics.pareto import Points, hypervolume, improvements
from autotune.planner.additive_model import Vector
from autotune.planner.knapsack import Costs, Maps, cheapest_for_each_budget, weighted, with_few_changes
from autotune.planner.posterior import Posterior
from autotune.planner.prior import Prior
from workers.timing.estimates import Figure

#: One map in this many is planned with costs drawn from the posterior.
_EXPLORE = 8
#: The search is spent after this many maps in a row whose expected gain is below this share of the hypervolume.
_PATIENCE, _LEAST_GAIN = 16, 2e-4
#: Candidates whose feasibility is computed, on either side of the limits.
_SHORT_LIST = 48
#: Factor on the probability of maps that are too likely to break a constraint.
_INFEASIBLE_FACTOR = 1e-12
#: Accepted probability that a map misses a limit: of the first map, of any, and how much less it is after each miss.
_FIRST_RISK, _MOST_RISK, _AFTER_MISS = 0.3, 0.5, 0.6
#: Candidates considered with three objectives, where hypervolumes are slow to compute.
_MOST_IN_3D = 300
#: Numbers of latency and memory weights tried against the divergence if memory counts.
_WEIGHTINGS = (40, 9)
#: Latency weights tried against the divergence if changes of precision have a price.
_SPEEDS = np.geomspace(1e-3, 1e3, 20)


class Planner:
    """Proposes maps as arrays of choice numbers, one per group."""

    def __init__(
        self,
        prior: Prior,
        choices: Sequence[Sequence[str]],
        objectives: Objectives,
        constraints: Sequence[Constraint],
        *,
        seed: int,
    ) -> None:
        """Start from the prior.

        Args:
            prior: of every choice of every group.
            choices: names of each group's choices.
            objectives: the metrics to trade off.
            constraints: the limits that a map must meet.
            seed: of the exploration's random numbers.
        """
        self._objectives = objectives
        self._constraints = constraints
        counted = [metric.name for metric in objectives.metrics] + [constraint.metric for constraint in constraints]
        self._posterior = Posterior(prior, choices, counted)
        self._memory_counts = any(METRICS[name].kind is Kind.MEMORY for name in counted)
        self._generator = np.random.default_rng(seed)
        #: Values of the feasible maps, and of those on other backends.
        self._points: list[tuple[float, ...]] = []
        #: Figures that set the scale of the objectives; those of full precision if empty.
        self._scale: Mapping[str, Figure] = {}
        #: Expected gain of the last proposal, as a share of the hypervolume; infinite before the first.
        self.promise = math.inf
        self._known: set[bytes] = set()
        self._proposals = self._low_gains = 0
        #: Maps that were proposed to meet the limits, and the risk of missing one that the next such map may have. The
        #: first map is careful, so that there is an answer soon.
        self._aimed: set[bytes] = set()
        self._risk = _FIRST_RISK

    @property
    def spent(self) -> bool:
        """Whether the latest proposals promised almost no gain."""
        return self._low_gains >= _PATIENCE

    def set_full_precision(self, figures: Mapping[str, Figure]) -> None:
        """Set the figures of full precision, on which all predictions are based; call it before the first proposal."""
        self._posterior.full_precision = figures

    def set_scale(self, figures: Mapping[str, Figure]) -> None:
        """Set the figures of the job's reference, if full precision of the maps' own backend is not the reference."""
        self._scale = figures

    def add_rival(self, figures: Mapping[str, Figure]) -> None:
        """Add a feasible map of another backend: maps that it dominates are no gain."""
        self._points.append(self._objectives.values(figures))

    def observe(self, maps: Maps, figures: Sequence[Mapping[str, Figure]], feasible: Sequence[bool]) -> None:
        """Learn from measured maps.

        Args:
            maps: shape ``(n, groups)``.
            figures: what was measured of each map; empty for one that failed.
            feasible: whether each map was measured in full and meets every constraint.
        """
        self._known.update(row.tobytes() for row in maps)
        self._posterior.observe(maps, figures)
        for row, kept in zip(maps, feasible, strict=True):
            if row.tobytes() in self._aimed:
                self._risk = min(_MOST_RISK, self._risk * (1.0 / _AFTER_MISS if kept else _AFTER_MISS))
        self._points += [self._objectives.values(each) for each, kept in zip(figures, feasible, strict=True) if kept]

    def propose(self, pending: Maps) -> npt.NDArray[np.intp] | None:
        """Return the map to measure next, or None if none of the maps considered is new.

        Args:
            pending: maps being measured, shape ``(n, groups)``; their predicted values count as measured.
        """
        self._proposals += 1
        explores = self._proposals % _EXPLORE == 0
        along = self._along_fronts(self._generator if explores else None)
        candidates = self._unknown(np.concatenate([along, self._neighbours(along)]), pending)
        if not len(candidates):
            return None
        predicted = self._posterior.predict(candidates)
        values = self._values(predicted)
        gains = self._gains(values, pending)
        wanted = self._nearness(values, gains) if self._targets_answer else gains
        listed = self._short_list(predicted, wanted)
        candidates, gains, wanted = candidates[listed], gains[listed], wanted[listed]
        likely = self._probability(candidates, {metric: of_all[listed] for metric, of_all in predicted.items()})
        if not explores:
            likely = _without_risky(likely, self._risk)
            self.promise = float((gains * likely).max())
            self._low_gains = self._low_gains + 1 if self.promise < _LEAST_GAIN else 0
        chosen = np.asarray(candidates[(wanted * likely).argmax()])
        if not explores:
            self._aimed.add(chosen.tobytes())
        return chosen

    @property
    def _targets_answer(self) -> bool:
        return bool(self._constraints) and self._proposals % 2 == 0

    def predicted_front(self) -> Maps:
        """Return maps along the currently predicted front, shape ``(n, groups)``."""
        return self._along_fronts(None)

    def _along_fronts(self, generator: np.random.Generator | None) -> Maps:
        """Return maps along the fronts of every relevant pair of a divergence and a latency."""
        posterior = self._posterior
        return np.concatenate(
            [
                self._along_front(
                    posterior.costs(generator, split=split, workload=workload), posterior.change_prices(workload)
                )
                for split, workload in itertools.product(posterior.splits, posterior.workloads)
            ]
        )

    def _along_front(self, costs: Costs, prices: Sequence[float]) -> Maps:
        found = [cheapest_for_each_budget(costs[0], costs[1]), self._with_few_changes(costs, prices)]
        if self._memory_counts:
            found += [cheapest_for_each_budget(costs[0], costs[2]), weighted(costs, self._weightings(costs))]
        return np.concatenate(found)

    def _with_few_changes(self, costs: Costs, prices: Sequence[float]) -> Maps:
        """Return maps along the front if changes of precision between neighbouring groups have a price."""
        legal = self._posterior.legal
        scale = np.ptp(costs[0][legal]) / (np.ptp(costs[1][legal]) or 1.0)
        price, speed = np.array(list(itertools.product(prices, scale * _SPEEDS))).reshape(-1, 2).T
        weighed = costs[0] + speed[:, None, None] * np.where(legal, costs[1], 0.0)
        return with_few_changes(weighed, self._posterior.precisions, price * speed)

    def _weightings(self, costs: Costs) -> Costs:
        ranges = [np.ptp(cost[self._posterior.legal]) or 1.0 for cost in costs]
        speed, size = (np.geomspace(1e-4, 1e4, count) for count in _WEIGHTINGS)
        grid = np.array([(1.0, one, other) for one in speed for other in (0.0, *size)])
        return np.asarray(grid / ranges)

    def _neighbours(self, along: Maps) -> Maps:
        """Return maps that differ in one group from a map along the front."""
        sizes = self._posterior.legal.sum(axis=1)
        near = along[self._generator.integers(len(along), size=2 * len(sizes))]
        changed = self._generator.integers(len(sizes), size=len(near))
        near[np.arange(len(near)), changed] = self._generator.integers(sizes[changed])
        return near

    def _unknown(self, maps: Maps, pending: Maps) -> Maps:
        """Return the maps that are neither measured nor pending, without duplicates."""
        if len(self._objectives.metrics) > 2 and len(maps) > _MOST_IN_3D:
            maps = self._generator.choice(maps, _MOST_IN_3D, replace=False)
        first = {row.tobytes(): number for number, row in reversed(list(enumerate(maps)))}
        known = self._known | {row.tobytes() for row in pending}
        return np.asarray(maps[sorted(number for key, number in first.items() if key not in known)])

    def _gains(self, values: Points, pending: Maps) -> Vector:
        """Return the share by which candidates with these values would raise the hypervolume."""
        full = self._scale or self._posterior.full_precision
        measured_soon = self._values(self._posterior.predict(pending))
        front = np.array([*self._points, *measured_soon]).reshape(-1, len(self._objectives.metrics))
        reference = self._objectives.reference_point(full)
        front = self._objectives.normalise(front, full)
        gains = improvements(self._objectives.normalise(values, full), front, reference)
        return gains / (hypervolume(front, reference) or 1.0)

    def _short_list(self, predicted: Mapping[str, Vector], wanted: Vector) -> npt.NDArray[np.intp]:
        """Return the best candidates expected to meet the constraints, and those expected to break them least.

        A third list spans the way to those that meet the constraints most clearly.
        """
        broken, margin = np.zeros(len(wanted)), np.full(len(wanted), np.inf)
        for constraint in self._constraints:
            violation = constraint.violation(predicted[constraint.metric])
            broken += np.maximum(violation, 0.0)
            margin = np.minimum(margin, -violation)
        holding, breaking = np.flatnonzero(broken == 0), np.flatnonzero(broken > 0)
        best, nearest = np.argsort(-wanted[holding])[:_SHORT_LIST], np.argsort(broken[breaking])[:_SHORT_LIST]
        spread = np.linspace(0, len(holding) - 1, min(_SHORT_LIST, len(holding))).astype(np.intp)
        safer = np.argsort(margin[holding])[spread]
        return np.concatenate([holding[np.union1d(best, safer)], breaking[nearest]])

    def _nearness(self, values: Points, gains: Vector) -> Vector:
        """Return by how much each candidate improves the best answer so far; the hypervolume breaks ties."""
        if not self._points:  # until a map is feasible, only feasibility counts
            return 1.0 + 1e-9 * gains
        best = min(point[0] for point in self._points)
        return np.maximum(best - values[:, 0], 0.0) + 1e-9 * gains

    def _values(self, predicted: Mapping[str, Vector]) -> Points:
        return np.column_stack([minimised(metric, predicted[metric.name]) for metric in self._objectives.metrics])

    def _probability(self, maps: Maps, predicted: Mapping[str, Vector]) -> Vector:
        """Return the probability that maps meet all constraints, as if these were independent."""
        likely = np.ones(len(maps))
        for constraint in self._constraints:
            above = predicted[constraint.metric] - constraint.limit
            excess = above if constraint.at_most else -above
            deviation = np.maximum(self._posterior.deviation(constraint.metric, maps), 1e-9)
            likely *= _normal_below(-excess / deviation)
        return likely


def _without_risky(likely: Vector, risk: float) -> Vector:
    """Return the probabilities, scaled down for maps that break a constraint with more than a probability of ``risk``.

    If all do, only the least risky keep theirs, give or take one half. Maps beyond a limit always promise large gains,
    so the planner could propose many of them in a row and learn little.
    """
    allowed = max(risk, 1.5 * (1.0 - likely.max()))
    return np.where(1.0 - likely <= allowed, likely, _INFEASIBLE_FACTOR * likely)


_erfc = np.vectorize(math.erfc, otypes=[float])


def _normal_below(deviations: Vector) -> Vector:
    # erfc stays precise far below zero, where the least unlikely map must be found.
    return np.asarray(0.5 * _erfc(deviations / -math.sqrt(2.0)))
