"""Models how far the divergence of two choices together differs from the sum of their divergences alone.

Errors of layers add up at the outputs as vectors, so the divergence of a map is a quadratic form of them. Two layers
with divergences a and b alone add at most 2 sqrt(a b) together. Every pair of choices gets a coefficient relative
to sqrt(a b) with a Gaussian prior; all priors have the same standard deviation. The millions of coefficients are
never stored, only the covariances between maps (Rasmussen and Williams, 2006, chapter 2). Pairs have no effect
until they would have predicted the measured maps better.
"""

import numpy as np
import numpy.typing as npt

from autotune.planner.additive_model import AdditiveModel, Columns, Matrix, Vector

#: Standard deviations tried for the coefficients, relative to sqrt(a b); 0 is no interaction.
_STRENGTHS = np.array([0.0, 0.1, 0.3])
#: Relative error of a value that interactions do not explain, and its lower bound relative to what they may explain;
#: without one, maps with the same pairs would make the system singular if their values are far below their effects.
_MISFIT, _LEAST_MISFIT = 0.03, 1e-6
#: Fewest maps that the strengths are judged by, and the number of latest maps kept: the search is near them.
_MIN_JUDGED, _MEMORY = 8, 64
#: Factor on earlier errors when the next map is judged, and the cap on relative errors.
_DECAY, _MAX_ERROR = 0.95, 0.3


class PairInteractions:
    """Corrects the sums of an additive model with interactions between pairs of its effects."""

    def __init__(self, model: AdditiveModel) -> None:
        """Correct ``model``; its negative effects count as 0."""
        self._model = model
        self._columns: list[Columns] = []
        self._values: list[float] = []
        self._misses, self._judged = np.zeros(len(_STRENGTHS)), 0

    def judge(self, columns: Columns, values: Vector) -> None:
        """Compare the prediction of each strength with the measured values, before the model learns them.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: the measured divergences, shape ``(n,)``, all positive.
        """
        if self._values:
            predicted = self._model.predict(columns) + self._corrections(columns, _STRENGTHS)
            for misses in np.minimum(np.abs(predicted / values - 1.0), _MAX_ERROR).T:
                self._misses = _DECAY * self._misses + misses
            self._judged += len(values)

    def learn(self, columns: Columns, values: Vector) -> None:
        """Remember measured maps; takes the same arguments as ``judge``, which must be called first."""
        self._columns = [*self._columns, *columns][-_MEMORY:]
        self._values = [*self._values, *values][-_MEMORY:]

    @property
    def strength(self) -> float:
        """The standard deviation of the coefficients that predicted best so far."""
        return float(_STRENGTHS[self._misses.argmin()]) if self._judged >= _MIN_JUDGED else 0.0

    def correction(self, columns: Columns) -> Vector:
        """Return what to add to the model's predictions, shape ``(n,)``."""
        if not self.strength:
            return np.zeros(len(columns))
        return np.asarray(self._corrections(columns, np.array([self.strength]))[0])

    def _corrections(self, columns: Columns, strengths: Vector) -> Matrix:
        """Return the corrections of each strength, shape ``(strengths, n)``."""
        known, values = np.array(self._columns), np.array(self._values)
        effects = np.maximum(self._model.mean, 0.0)
        missed = (values - self._model.predict(known)) / values
        # Errors relative to the values give small divergences the same weight as large ones.
        between = _covariance(effects, known, known) / np.outer(values, values)
        own = np.maximum(_MISFIT**2, _LEAST_MISFIT**2 * np.outer(strengths**2, between.diagonal()))
        weights = [
            np.linalg.solve(s**2 * between + np.diag(alone), missed) for s, alone in zip(strengths, own, strict=True)
        ]
        return np.asarray((strengths[:, None] ** 2 * np.array(weights) / values) @ _covariance(effects, known, columns))


def _covariance(effects: Vector, known: Columns, columns: Columns) -> Matrix:
    """Return the covariances of the sums of pairs for unit coefficients, shape ``(known, maps)``.

    A covariance is the sum of a b over the pairs of effects that two maps share: half of (sum of a)^2 - sum of a^2.
    """
    shared = np.intersect1d(known, columns)
    here, there = (_marked(maps, len(effects))[:, shared] for maps in (known, columns))
    here *= effects[shared].astype(np.float32)
    sums, squares = np.split(np.concatenate([here, here**2]) @ there.T, 2)
    return np.asarray((sums.astype(np.float64) ** 2 - squares) / 2.0)


def _marked(maps: Columns, effects: int) -> npt.NDArray[np.float32]:
    """Return which effects each map has, shape ``(maps, effects)``."""
    marked = np.zeros((len(maps), effects), dtype=np.float32)
    np.put_along_axis(marked, maps, np.float32(1.0), axis=1)
    return marked
