"""What the choices of two layers cost together beyond the sum of what each costs alone.

Errors of layers add up at the outputs as vectors, so the divergence of a map is a quadratic form of them, and two
layers that alone diverge by a and b add at most 2 sqrt(a b) together. Every pair of choices gets a coefficient
of that size with a Gaussian prior, of one standard deviation for all, and the millions of coefficients are never
written down: only the covariances between maps are (Rasmussen and Williams, 2006, chapter 2). Pairs count
nothing until maps show that they would have been predicted better with them.
"""

import numpy as np
import numpy.typing as npt

from autotune.planner.additive_model import AdditiveModel, Columns, Matrix, Vector

#: Standard deviations tried for the coefficients, relative to sqrt(a b); 0 is no interaction.
_STRENGTHS = np.array([0.0, 0.1, 0.3])
#: What else a value may be off by, relative.
_MISFIT = 0.03
#: Maps that the strengths are judged by, at least, and the maps remembered; the newest, for the search is near them.
_LEAST, _MEMORY = 8, 64
#: Share of a judgement that is left when the next map is judged, and the relative error that counts for any larger.
_FORGET, _WORST = 0.95, 0.3


class PairInteractions:
    """Corrects the sums of an additive model by pairs of its effects."""

    def __init__(self, model: AdditiveModel) -> None:
        """Correct ``model``, whose effects are never negative where it is used."""
        self._model = model
        self._columns: list[Columns] = []
        self._values: list[float] = []
        self._misses, self._judged = np.zeros(len(_STRENGTHS)), 0

    def judge(self, columns: Columns, values: Vector) -> None:
        """Compare what each strength predicts with what was measured, before the model has learned of it.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: what was measured, shape ``(n,)``, all positive.
        """
        if self._values:
            predicted = self._model.predict(columns) + self._corrections(columns, _STRENGTHS)
            for misses in np.minimum(np.abs(predicted / values - 1.0), _WORST).T:
                self._misses = _FORGET * self._misses + misses
            self._judged += len(values)

    def learn(self, columns: Columns, values: Vector) -> None:
        """Remember measured maps; arguments as for ``judge``, which comes first."""
        self._columns = [*self._columns, *columns][-_MEMORY:]
        self._values = [*self._values, *values][-_MEMORY:]

    @property
    def strength(self) -> float:
        """Return the standard deviation of the coefficients that predicted best so far."""
        return float(_STRENGTHS[self._misses.argmin()]) if self._judged >= _LEAST else 0.0

    def correction(self, columns: Columns) -> Vector:
        """Return what to add to the model's predictions, shape ``(n,)``."""
        if not self.strength:
            return np.zeros(len(columns))
        return np.asarray(self._corrections(columns, np.array([self.strength]))[0])

    def _corrections(self, columns: Columns, strengths: Vector) -> Matrix:
        """Return the correction by each strength, shape ``(strengths, n)``."""
        known, values = np.array(self._columns), np.array(self._values)
        effects = np.maximum(self._model.mean, 0.0)
        missed = (values - self._model.predict(known)) / values
        # Relative to the values, small divergences count as much as large ones.
        between = _covariance(effects, known, known) / np.outer(values, values)
        weights = [np.linalg.solve(s**2 * between + _MISFIT**2 * np.eye(len(values)), missed) for s in strengths]
        return np.asarray((strengths[:, None] ** 2 * np.array(weights) / values) @ _covariance(effects, known, columns))


def _covariance(effects: Vector, known: Columns, columns: Columns) -> Matrix:
    """Return the covariances of the pairs' sums for unit coefficients, shape ``(known, maps)``.

    It is the sum of a b over the pairs of effects that two maps share: half of (sum of a)^2 - sum of a^2.
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
