"""What is believed of every map: additive models of divergence and latency, exact memory, accuracy by its link.

Divergence has interactions of layers on top, as far as measured maps ask for them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autotune.accuracy_link import AccuracyLink
from autotune.expectations import Expectations
from autotune.interactions import Interactions
from autotune.knapsack import Costs, Maps
from autotune.metrics import METRICS, Figure
from autotune.surrogate import AdditiveModel, Vector
from search_spaces.choice import FULL_PRECISION, Precision, choice_named

#: Spread of effects around their prior: each by itself, and all of one choice together.
_DIVERGENCE_SPREAD, _LATENCY_SPREAD = (0.3, 0.3), (0.15, 0.25)
#: Spread of latencies that were probed together, because their layers have one shape: of such an effect, and
#: of the typical one. Small layers are mostly overhead, which timing layer by layer misjudges.
_ALIKE_SPREAD = (0.1, 0.5)
#: The same where nothing was probed.
_GUESS_SPREAD = (1.0, 1.0)
#: How far sums of effects miss measured divergences and latency ratios, relative.
_DIVERGENCE_MISFIT, _LATENCY_MISFIT = 0.08, 0.004
#: The divergence of a choice is at least this share of its prior.
_LEAST_EFFECT = 0.1
#: Guesses are scaled to no less, or nothing measured later would count.
_LEAST_DIVERGENCE = 1e-6
#: Mean and standard deviation of what a map whose neighbouring groups all differ in precision loses in latency ratio.
#: Kernels of several precisions in one pass slow each other down. The more often they take turns, the more,
#: but the first turns cost most: on MiniLM, 1, 5 and 35 of 35 turns cost 0.02, 0.04 and 0.06.
_TURNS_PRIOR, _TURNS_EXPONENT = (0.03, 0.05), 0.4
#: Shares of groups between which the precision changes at which the price of one change more is worked out.
_TURNS = (0.005, 0.03, 0.3)
#: Less than measurements tell if all neighbours differ.
_LEAST_TURNS = 0.002
#: Relative deviation of latency percentiles from what the ratio of medians says.
_TAIL_DEVIATION = 0.01
#: Standard deviations in a 95 % interval.
_INTERVAL = 3.92


class Beliefs:
    """Learns from measured maps and predicts all others."""

    def __init__(self, expectations: Expectations, choices: Sequence[Sequence[str]]) -> None:
        """Start from what is expected of every choice of every group, ``choices`` being their names."""
        self._expected = expectations
        #: Which choices each group has, shape ``(groups, choices)``.
        self.legal = np.isfinite(expectations.memory_mib)
        # Effect 0 is what all maps have in common.
        self._columns = np.where(self.legal, np.cumsum(self.legal).reshape(self.legal.shape), 0)
        names = [name for of_group in choices for name in of_group]
        spreads = (_DIVERGENCE_SPREAD, _LATENCY_SPREAD) if expectations.probed else (_GUESS_SPREAD, _GUESS_SPREAD)
        self._divergence = self._model(expectations.divergence, names, spreads[0], 0.0, expectations.fixed_divergence)
        self._latency = self._model(
            expectations.latency, names, spreads[1], 1.0, expectations.fixed_latency, turns=_TURNS_PRIOR
        )
        self._interactions = Interactions(self._divergence)
        precisions = [
            [list(Precision).index(choice_named(name).precision) for name in of_group] for of_group in choices
        ]
        #: Number of the precision of each choice, shape ``(groups, choices)``.
        self.precisions = np.zeros(self.legal.shape, dtype=np.intp)
        self.precisions[self.legal] = [precision for of_group in precisions for precision in of_group]
        # What the divergences of choices are at least: none turns negative by chance.
        self._least = _LEAST_EFFECT * self._divergence.mean
        self._choices = choices
        self._scaled: set[str] = set()
        self._link = AccuracyLink()
        self._drops: list[tuple[float, float]] = []
        #: Figures that everything is relative to; to be set before anything is predicted.
        self.full_precision: Mapping[str, Figure] = {}

    def observe(self, maps: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        """Learn what was measured of maps, shape ``(n, groups)``; figures may be missing."""
        columns = self._of(maps)
        if not self._expected.probed:
            self._scale_guesses(maps, columns, figures)
        self._observe_divergence(columns, figures)
        _observe(self._latency, columns, figures, "latency_ratio", _LATENCY_MISFIT, self._turns(maps))
        self._drops += [
            (each["divergence"].value, each["accuracy_drop"].value) for each in figures if "accuracy_drop" in each
        ]
        if self._drops:
            self._link = AccuracyLink.fitted(*np.array(self._drops).T)

    def costs(self, generator: np.random.Generator | None = None) -> Costs:
        """Return divergence, latency and memory of every choice, shape ``(3, groups, choices)``.

        They are the expected ones, or drawn from the beliefs if there is a ``generator``.
        """
        divergence, latency = (
            model.mean if generator is None else model.draw(generator) for model in (self._divergence, self._latency)
        )
        return np.stack(
            [
                self._spread_out(np.maximum(divergence, self._least)),
                self._spread_out(latency),
                self._expected.memory_mib,
            ]
        )

    def change_prices(self) -> list[float]:
        """Return what one change of precision more costs in latency ratio, where there are few and many.

        Empty if changes are believed to cost next to nothing.
        """
        effect, pairs = float(self._latency.mean[-1]), max(1, len(self.legal) - 1)
        each = [effect * _TURNS_EXPONENT * share ** (_TURNS_EXPONENT - 1.0) / pairs for share in _TURNS]
        return each if effect > _LEAST_TURNS else []

    def predict(self, maps: Maps) -> dict[str, Vector]:
        """Return metric -> expected values of maps, shape ``(n,)`` each."""
        expected, groups, columns = self._expected, np.arange(len(self.legal)), self._of(maps)
        least = self._least[0] + self._least[columns].sum(axis=1)
        sums = self._divergence.predict(columns) + self._interactions.correction(columns)
        divergence = np.maximum(sums, least)
        ratio = np.maximum(self._latency.predict(columns, self._turns(maps)), 1e-3)
        memory = expected.memory_mib[groups, maps].sum(axis=1) + expected.fixed_memory_mib
        drop = self._link.drop(divergence)
        full = {name: figure.value for name, figure in self.full_precision.items()}
        predicted = {name: ratio * full[name] for name in METRICS if name.startswith("latency_p") and name in full}
        predicted |= {
            "divergence": divergence,
            "latency_ratio": ratio,
            "weight_memory_mib": memory,
            "accuracy_drop": drop,
        }
        if "accuracy" in full:
            predicted["accuracy"] = full["accuracy"] - drop * abs(full["accuracy"])
        if "peak_memory_mib" in full:
            predicted["peak_memory_mib"] = memory + full["peak_memory_mib"] - full["weight_memory_mib"]
        return predicted

    def deviation(self, metric: str, maps: Maps) -> Vector:
        """Return the standard deviation of a metric a constraint may limit, shape ``(n,)``."""
        if metric.startswith("latency"):
            relative = self._latency.deviation(self._of(maps), self._turns(maps)) + _TAIL_DEVIATION
            return np.asarray(relative * (self.full_precision[metric].value if metric != "latency_ratio" else 1.0))
        if metric == "accuracy":
            return np.full(len(maps), self._link.scatter * abs(self.full_precision["accuracy"].value))
        return np.full(len(maps), self._link.scatter if metric == "accuracy_drop" else 0.0)

    def _observe_divergence(self, columns: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        # Guesses are so far off that pairs would explain what single effects have yet to learn.
        rows = [row for row, each in enumerate(figures) if self._expected.probed and _diverges(each)]
        values = np.array([figures[row]["divergence"].value for row in rows])
        self._interactions.judge(columns[rows], values)
        _observe(self._divergence, columns, figures, "divergence", _DIVERGENCE_MISFIT)
        self._interactions.learn(columns[rows], values)

    def _model(
        self,
        prior: Costs,
        names: Sequence[str],
        spreads: tuple[float, float],
        certain: float,
        fixed: float,
        *,
        turns: tuple[float, float] | None = None,
    ) -> AdditiveModel:
        alone, together = spreads
        effects = np.concatenate([[0.0], prior[self.legal]])
        typical = float(np.median(np.abs(effects[effects != 0.0]))) if effects.any() else 0.0
        spread = np.where(effects != 0.0, alone * np.abs(effects) + 0.05 * typical, 0.0)
        spread[0] = np.hypot(0.02 * typical, np.hypot(alone, together) * fixed)
        of_choice = np.array([[False, *(name == choice for name in names)] for choice in dict.fromkeys(names)])
        mean = effects.copy()
        mean[0] = certain + fixed
        shared = together * np.vstack([of_choice * effects, effects])
        if turns is None:
            return AdditiveModel(mean, spread, shared)
        of_effect, of_typical = _ALIKE_SPREAD
        shared = np.vstack([shared, _alike(effects, names) * (of_effect * np.abs(effects) + of_typical * typical)])
        return AdditiveModel(np.append(mean, turns[0]), np.append(spread, turns[1]), np.pad(shared, ((0, 0), (0, 1))))

    def _turns(self, maps: Maps) -> Costs:
        """Return how much neighbouring groups of maps differ in precision, from 0 to 1; shape ``(n, 1)``."""
        precisions = self.precisions[np.arange(len(self.legal)), maps]
        turns = (np.diff(precisions, axis=1) != 0).sum(axis=1) / max(1, len(self.legal) - 1)
        return np.asarray(turns[:, None] ** _TURNS_EXPONENT)

    def _scale_guesses(self, maps: Maps, columns: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        """Let the first map that takes a choice say how large the divergences of that choice are."""
        for row, each in enumerate(figures):
            names = {self._choices[group][choice] for group, choice in enumerate(maps[row])}
            taken = names - {FULL_PRECISION.name} - self._scaled
            if taken and "divergence" in each:
                self._scale_guess(taken, np.append(0, columns[row]), each["divergence"].value)

    def _scale_guess(self, taken: set[str], effects: Maps, divergence: float) -> None:
        """Scale the guesses of choices so that the effects of a map sum to what it was measured to diverge."""
        # What is fixed has the scale of the first choice, as far as anybody can tell.
        scaled = np.array([not self._scaled, *(name in taken for of_group in self._choices for name in of_group)])
        part, rest = (float((self._divergence.mean * which)[effects].sum()) for which in (scaled, ~scaled))
        whole = max(divergence, _LEAST_DIVERGENCE)
        self._divergence.scale(scaled, max(whole - rest, _LEAST_EFFECT * whole) / part)
        self._least[scaled] = _LEAST_EFFECT * self._divergence.mean[scaled]
        self._scaled |= taken

    def _of(self, maps: Maps) -> Maps:
        """Return the numbers of the effects of maps."""
        return np.asarray(self._columns[np.arange(len(self.legal)), maps])

    def _spread_out(self, effects: Vector) -> Costs:
        return np.where(self.legal, effects[self._columns], np.inf)


def _alike(effects: Vector, names: Sequence[str]) -> Costs:
    """Return which effects, after the first, are of one choice and equal, shape ``(kinds, effects)``."""
    keys = list(zip(names, effects[1:], strict=True))
    return np.array([[False, *(key == kind for key in keys)] for kind in dict.fromkeys(keys) if kind[1] != 0.0])


def _diverges(figures: Mapping[str, Figure]) -> bool:
    return "divergence" in figures and figures["divergence"].value > 0.0


def _observe(
    model: AdditiveModel,
    columns: Maps,
    figures: Sequence[Mapping[str, Figure]],
    metric: str,
    misfit: float,
    features: Costs | None = None,
) -> None:
    rows = [row for row, each in enumerate(figures) if metric in each]
    if rows:
        found = [figures[row][metric] for row in rows]
        values = np.array([figure.value for figure in found])
        noise = np.array([_width(figure) / _INTERVAL for figure in found])
        # A map measured to diverge by nothing still says something of finite weight.
        deviations = np.hypot(noise, misfit * values) + 1e-12
        model.observe(columns[rows], values, deviations, None if features is None else features[rows])


def _width(figure: Figure) -> float:
    return figure.high - figure.low if figure.low is not None and figure.high is not None else 0.0
