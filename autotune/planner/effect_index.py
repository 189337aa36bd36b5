"""The effects of every group's choices: their numbers, and prior posterior about them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autotune.planner.additive_model import AdditiveModel, Vector
from autotune.planner.knapsack import Costs, Maps
from search_spaces.choice import FULL_PRECISION
from workers.timing.estimates import Figure

#: Spread of effects that were not probed around their guess: each by itself, and all of one choice together.
GUESS_SPREAD = (1.0, 1.0)
#: Spread of latencies that were probed together, because their layers have one shape: of such an effect, and
#: of the typical one. Small layers are mostly overhead, which timing layer by layer misjudges.
_ALIKE_SPREAD = (0.1, 0.5)
#: Standard deviations in a 95 % interval.
_INTERVAL = 3.92


class EffectIndex:
    """Numbers the effects: 0 is what all maps have in common, then come each group's choices."""

    def __init__(self, legal: npt.NDArray[np.bool_], choices: Sequence[Sequence[str]]) -> None:
        """Take which choices each group has, shape ``(groups, choices)``, and their names."""
        self.legal, self.choices = legal, choices
        #: Names of the choices of all groups, in the order of their effects.
        self.names = [name for of_group in choices for name in of_group]
        self._numbers = np.where(legal, np.cumsum(legal).reshape(legal.shape), 0)

    def of(self, maps: Maps) -> Maps:
        """Return the numbers of the effects of maps, shape ``(n, groups)``."""
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
        turns: tuple[float, float] | None = None,
    ) -> AdditiveModel:
        """Return posterior about effects before anything was measured.

        Args:
            prior: expected effects, shape ``(groups, choices)``.
            spreads: relative deviation of each effect by itself, and of all of one choice together.
            certain: what all maps have in common for sure.
            fixed: what layers without a choice are expected to add to it.
            turns: mean and deviation of one more effect, which ``observe`` takes as a feature; None if there is none.
        """
        alone, together = spreads
        effects = np.concatenate([[0.0], prior[self.legal]])
        typical = float(np.median(np.abs(effects[effects != 0.0]))) if effects.any() else 0.0
        spread = np.where(effects != 0.0, alone * np.abs(effects) + 0.05 * typical, self._of_others(effects, typical))
        spread[0] = np.hypot(0.02 * typical, np.hypot(alone, together) * fixed)
        of_choice = np.array(
            [[False, *(name == choice for name in self.names)] for choice in dict.fromkeys(self.names)]
        )
        mean = effects.copy()
        mean[0] = certain + fixed
        shared = together * np.vstack([of_choice * effects, effects])
        if turns is None:
            return AdditiveModel(mean, spread, shared)
        of_effect, of_typical = _ALIKE_SPREAD
        alike = _alike(effects, self.names) * (of_effect * np.abs(effects) + of_typical * typical)
        shared = np.pad(np.vstack([shared, alike]), ((0, 0), (0, 1)))
        return AdditiveModel(np.append(mean, turns[0]), np.append(spread, turns[1]), shared)

    def _of_others(self, effects: Vector, typical: float) -> Vector:
        """Return how large the effects of the same choice in other groups are; nothing for full precision.

        What full precision costs is known. Of anything else a zero is an estimate that may miss as much as there is.
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
    """Tell a model the values of one metric that were measured of maps; figures may be missing."""
    rows = [row for row, each in enumerate(figures) if metric in each]
    if rows:
        found = [figures[row][metric] for row in rows]
        values = np.array([figure.value for figure in found])
        noise = np.array([_width(figure) / _INTERVAL for figure in found])
        # A map measured to diverge by nothing still says something of finite weight.
        deviations = np.hypot(noise, misfit * values) + 1e-12
        model.observe(columns[rows], values, deviations, None if features is None else features[rows])


def _alike(effects: Vector, names: Sequence[str]) -> Costs:
    """Return which effects, after the first, are of one choice and equal, shape ``(kinds, effects)``."""
    keys = list(zip(names, effects[1:], strict=True))
    return np.array([[False, *(key == kind for key in keys)] for kind in dict.fromkeys(keys) if kind[1] != 0.0])


def _width(figure: Figure) -> float:
    return figure.high - figure.low if figure.low is not None and figure.high is not None else 0.0
