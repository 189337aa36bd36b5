"""The effects of every group's choices: how they are numbered, and models with their priors."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autotune.planner.additive_model import AdditiveModel, Vector
from autotune.planner.knapsack import Costs, Maps
from search_spaces.choice import FULL_PRECISION
from workers.timing.estimates import Figure

#: Relative deviation of unprobed effects from their guess: of each effect, and shared by all of one choice.
GUESS_SPREAD = (1.0, 1.0)
#: Deviation shared by latencies that were probed together because their layers have one shape: relative to the
#: effect, and relative to the typical effect. Small layers are mostly overhead, which timing per layer misjudges.
_SAME_SHAPE_SPREAD = (0.1, 0.5)
#: Standard deviations in a 95 % interval.
_INTERVAL = 3.92


class EffectIndex:
    """Numbers the effects: 0 is common to all maps, followed by one per choice of each group."""

    def __init__(self, legal: npt.NDArray[np.bool_], choices: Sequence[Sequence[str]]) -> None:
        """Number the choices.

        Args:
            legal: whether each group has each choice, shape ``(groups, choices)``.
            choices: names of each group's choices.
        """
        self.legal, self.choices = legal, choices
        #: Names of the choices of all groups, in the order of their effects.
        self.names = [name for of_group in choices for name in of_group]
        self._numbers = np.where(legal, np.cumsum(legal).reshape(legal.shape), 0)

    def of(self, maps: Maps) -> Maps:
        """Return the effect numbers of maps, shape ``(n, groups)``."""
        return np.asarray(self._numbers[np.arange(len(self.legal)), maps])

    def spread_out(self, effects: Vector) -> Costs:
        """Return effects as costs, shape ``(groups, choices)``."""
        return np.where(self.legal, effects[self._numbers], np.inf)

    def model(
        self,
        prior: Costs,
        spreads: tuple[float, float],
        *,
        certain: float,
        fixed: float,
        extra: tuple[float, float] | None = None,
    ) -> AdditiveModel:
        """Return a model of the effects before anything was measured.

        Args:
            prior: expected effects, shape ``(groups, choices)``.
            spreads: relative deviation of each effect, and the one shared by all effects of one choice.
            certain: part of every sum that is known exactly.
            fixed: expected contribution of layers without a choice to every sum.
            extra: mean and deviation of one more effect, which ``observe`` takes as a feature; None without one.
        """
        alone, together = spreads
        effects = np.concatenate([[0.0], prior[self.legal]])
        typical = float(np.median(np.abs(effects[effects != 0.0]))) if effects.any() else 0.0
        spread = np.where(
            effects != 0.0, alone * np.abs(effects) + 0.05 * typical, self._typical_sizes(effects, typical)
        )
        spread[0] = np.hypot(0.02 * typical, np.hypot(alone, together) * fixed)
        of_choice = np.array(
            [[False, *(name == choice for name in self.names)] for choice in dict.fromkeys(self.names)]
        )
        mean = effects.copy()
        mean[0] = certain + fixed
        shared = together * np.vstack([of_choice * effects, effects])
        if extra is None:
            return AdditiveModel(mean, spread, shared)
        of_effect, of_typical = _SAME_SHAPE_SPREAD
        alike = _same_effects(effects, self.names) * (of_effect * np.abs(effects) + of_typical * typical)
        shared = np.pad(np.vstack([shared, alike]), ((0, 0), (0, 1)))
        return AdditiveModel(np.append(mean, extra[0]), np.append(spread, extra[1]), shared)

    def _typical_sizes(self, effects: Vector, typical: float) -> Vector:
        """Return each effect's median size among the groups with the same choice; 0 for full precision.

        The effects of full precision are known to be 0. Any other zero is an estimate that may be wrong.
        """
        sizes = np.zeros(len(effects))
        for choice in dict.fromkeys(self.names):
            if choice != FULL_PRECISION.name:
                of_choice = np.array([False, *(name == choice for name in self.names)])
                others = np.abs(effects[of_choice & (effects != 0.0)])
                sizes[of_choice] = np.median(others) if len(others) else typical
        return sizes


def observe(
    model: AdditiveModel,
    columns: Maps,
    figures: Sequence[Mapping[str, Figure]],
    metric: str,
    misfit: float,
    features: Costs | None = None,
) -> None:
    """Update a model with the measured values of one metric; figures may be missing."""
    rows = [row for row, each in enumerate(figures) if metric in each]
    if rows:
        found = [figures[row][metric] for row in rows]
        values = np.array([figure.value for figure in found])
        noise = np.array([_width(figure) / _INTERVAL for figure in found])
        # Without noise, a measured 0 would have infinite weight.
        deviations = np.hypot(noise, misfit * values) + 1e-12
        model.observe(columns[rows], values, deviations, None if features is None else features[rows])


def _same_effects(effects: Vector, names: Sequence[str]) -> Costs:
    """Return masks of the effects that share a choice and a value, shape ``(kinds, effects)``."""
    keys = list(zip(names, effects[1:], strict=True))
    masks = [[False, *(key == kind for key in keys)] for kind in dict.fromkeys(keys) if kind[1] != 0.0]
    return np.array(masks, dtype=np.float64).reshape(len(masks), len(effects))


def _width(figure: Figure) -> float:
    return figure.high - figure.low if figure.low is not None and figure.high is not None else 0.0
