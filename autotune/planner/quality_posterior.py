"""The posterior of the quality of maps on one split: an additive model of divergence, and accuracy from divergence.

Interactions between layers correct the divergence where that predicts the measured maps better.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autotune.metrics.catalog import Kind, Metric, metric_of
from autotune.planner.accuracy_curve import AccuracyCurve
from autotune.planner.additive_model import Vector
from autotune.planner.effect_index import GUESS_SPREAD, EffectIndex, observe
from autotune.planner.knapsack import Costs, Maps
from autotune.planner.pair_interactions import PairInteractions
from search_spaces.choice import FULL_PRECISION
from workers.measurement import Split
from workers.timing.estimates import Figure

#: Relative deviation of probed effects from their prior: of each effect, and shared by all of one choice.
_SPREAD = (0.3, 0.3)
#: Relative error of sums of effects against measured divergences.
_MISFIT = 0.08
#: Lower bound on the divergence of a choice, as a share of its prior.
_LEAST_EFFECT = 0.1
#: Guesses are scaled to at least this divergence; otherwise later measurements could not correct them.
_LEAST_DIVERGENCE = 1e-6
#: Factor by which the first map of a choice may differ from its probes; beyond it the probes only rank layers.
_TRUST = 5.0


class QualityPosterior:
    """Learns the divergences and accuracies of measured maps and predicts those of all others."""

    def __init__(self, effects: EffectIndex, prior: Costs, fixed: float, *, probed: bool, split: Split) -> None:
        """Start from the prior.

        Args:
            effects: numbers the choices.
            prior: divergence that each choice causes alone, shape ``(groups, choices)``.
            fixed: divergence that layers without a choice cause.
            probed: whether the prior was probed on this split; otherwise it only ranks layers, and the first map
                that takes a choice sets its scale.
            split: the data that the metrics are about.
        """
        self._effects, self._probed = effects, probed
        #: Names of the quality metrics on the split.
        self._names = {
            kind: metric_of(kind, split).name for kind in (Kind.ACCURACY, Kind.ACCURACY_DROP, Kind.DIVERGENCE)
        }
        self._model = effects.model(prior, _SPREAD if probed else GUESS_SPREAD, certain=0.0, fixed=fixed)
        self._interactions = PairInteractions(self._model)
        # Lower bounds on the divergences of choices, so that none becomes negative by chance.
        self._least = _LEAST_EFFECT * self._model.mean
        self._scaled: set[str] = set()
        self._curve = AccuracyCurve()
        self._drops: list[tuple[float, float]] = []

    def observe(self, maps: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        """Learn from measured maps, shape ``(n, groups)``; figures may be missing."""
        start = 0
        for row, each in enumerate(figures):
            taken = self._unscaled(maps[row])
            measured = each.get(self._names[Kind.DIVERGENCE])
            if taken and measured is not None and (measured.value > 0.0 or not self._probed):
                if self._probed:  # earlier maps determine the other choices' part of the divergence
                    self._learn(maps[start:row], figures[start:row])
                    start = row
                self._scale_prior(taken, np.append(0, self._effects.of(maps[row : row + 1])), measured.value)
        self._learn(maps[start:], figures[start:])

    def costs(self, generator: np.random.Generator | None = None) -> Costs:
        """Return the divergence of every choice, expected or drawn from the posterior; shape ``(groups, choices)``."""
        divergence = self._model.mean if generator is None else self._model.draw(generator)
        return self._effects.spread_out(np.maximum(divergence, self._least))

    def predict(self, maps: Maps, full_precision: Mapping[str, Figure]) -> dict[str, Vector]:
        """Return metric -> expected values of maps, shape ``(n,)`` each."""
        divergence = self._divergence(maps)
        drop = self._curve.drop(divergence)
        predicted = {self._names[Kind.DIVERGENCE]: divergence, self._names[Kind.ACCURACY_DROP]: drop}
        accuracy = self._names[Kind.ACCURACY]
        full = full_precision.get(accuracy)
        if full is not None:
            predicted[accuracy] = full.value - drop * abs(full.value)
        return predicted

    def deviation(self, metric: Metric, maps: Maps, full_precision: Mapping[str, Figure]) -> Vector:
        """Return the standard deviations of a quality metric of maps, shape ``(n,)``."""
        divergence = self._divergence(maps)
        spread = np.hypot(self._model.deviation(self._effects.of(maps)), _MISFIT * divergence)
        if metric.kind is Kind.DIVERGENCE:
            return np.asarray(spread)
        drop = self._curve.deviation(divergence, spread)
        return drop * abs(full_precision[metric.name].value) if metric.kind is Kind.ACCURACY else drop

    def _divergence(self, maps: Maps) -> Vector:
        columns = self._effects.of(maps)
        least = self._least[0] + self._least[columns].sum(axis=1)
        sums = self._model.predict(columns) + self._interactions.correction(columns)
        return np.asarray(np.maximum(sums, least))

    def _learn(self, maps: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        divergence, drop = self._names[Kind.DIVERGENCE], self._names[Kind.ACCURACY_DROP]
        columns = self._effects.of(maps)
        # Guesses are so far off that pairs would explain errors of single effects.
        rows = [row for row, each in enumerate(figures) if self._probed and _positive(each.get(divergence))]
        values = np.array([figures[row][divergence].value for row in rows])
        self._interactions.judge(columns[rows], values)
        observe(self._model, columns, figures, divergence, _MISFIT)
        self._interactions.learn(columns[rows], values)
        self._drops += [(each[divergence].value, each[drop].value) for each in figures if drop in each]
        if self._drops:
            self._curve = AccuracyCurve.fitted(*np.array(self._drops).T)

    def _unscaled(self, choices: Maps) -> set[str]:
        """Return the choices that one map, shape ``(groups,)``, is the first to take."""
        names = {self._effects.choices[group][choice] for group, choice in enumerate(choices)}
        return names - {FULL_PRECISION.name} - self._scaled

    def _scale_prior(self, taken: set[str], effects: Maps, divergence: float) -> None:
        """Scale the priors of choices so that the effects of a map sum to its measured divergence.

        Probes are scaled only if they are far off.
        """
        # Without probes, the fixed layers' part is assumed to have the scale of the first choice.
        first = not self._scaled and not self._probed
        scaled = np.array([first, *(name in taken for name in self._effects.names)])
        part, rest = (float((self._model.mean * which)[effects].sum()) for which in (scaled, ~scaled))
        whole = max(divergence, _LEAST_DIVERGENCE)
        factor = max(whole - rest, _LEAST_EFFECT * whole) / part if part else 1.0
        if not self._probed or not 1.0 / _TRUST < factor < _TRUST:
            self._model.scale(scaled, factor)
            self._least[scaled] = _LEAST_EFFECT * self._model.mean[scaled]
        self._scaled |= taken


def _positive(figure: Figure | None) -> bool:
    return figure is not None and figure.value > 0.0
