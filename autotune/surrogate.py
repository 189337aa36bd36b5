"""A Bayesian additive model: a value is the sum of one effect for each group's choice.

Beliefs about the effects are Gaussian, so observations update them in closed form (Rasmussen and
Williams, 2006, chapter 2). Effects are wrong in common as well as one by one: a prior that
underestimates int8 in one layer does so in others. Shared factors say so, and let a handful of
observations correct hundreds of effects.
"""

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
#: One effect's number for each group, shape ``(maps, groups)``; effect 0 is in every map.
Columns = npt.NDArray[np.intp]

#: Noise of a value that is never ruled out, relative to what is uncertain about it.
_LEAST_NOISE = 1e-6

#: Rows of the covariance updated at once.
_BLOCK = 64


class AdditiveModel:
    """Beliefs about the effects, and predictions of their sums."""

    def __init__(self, mean: Vector, spread: Vector, shared: Matrix) -> None:
        """Start from a prior.

        Args:
            mean: of each effect, shape ``(effects,)``.
            spread: standard deviation of each effect by itself, shape ``(effects,)``.
            shared: rows of effects that are wrong together, by one standard deviation, shape ``(factors, effects)``.
        """
        #: Expected effects, shape ``(effects,)``.
        self.mean = mean.copy()
        self._covariance = np.diag(spread**2) + shared.T @ shared

    def observe(self, columns: Columns, values: Vector, noise: Vector, features: Matrix | None = None) -> None:
        """Update the beliefs by measured sums.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: what was measured, shape ``(n,)``.
            noise: standard deviation of each value, shape ``(n,)``.
            features: how much of each of the last effects a map has, if not all effects are groups' choices,
                shape ``(n, features)``.
        """
        design = self._design(columns, features)
        # One map touches few rows of the covariance; many maps are quicker as one product.
        spreads = (
            self._covariance[np.flatnonzero(design)].sum(axis=0)[None]
            if len(design) == 1 and features is None
            else design @ self._covariance
        )
        between = spreads @ design.T
        # Sums of the same uncertain effects, known next to exactly, would make the system singular.
        own = np.maximum(noise**2, _LEAST_NOISE**2 * between.diagonal())
        gain = np.linalg.solve(between + np.diag(own), spreads)
        self.mean += (values - design @ self.mean) @ gain
        for start in range(0, len(self.mean), _BLOCK):  # block by block, because one of all would leave the caches
            rows = slice(start, start + _BLOCK)
            self._covariance[rows] -= spreads[:, rows].T @ gain

    def scale(self, effects: npt.NDArray[np.bool_], factor: float) -> None:
        """Multiply the beliefs about some effects, marked in a mask of shape ``(effects,)``, by a factor."""
        factors = np.where(effects, factor, 1.0)
        self.mean *= factors
        self._covariance *= np.outer(factors, factors)

    def predict(self, columns: Columns, features: Matrix | None = None) -> Vector:
        """Return the expected sums of maps, shape ``(n,)``."""
        sums = self.mean[0] + self.mean[columns].sum(axis=1)
        return np.asarray(sums if features is None else sums + features @ self.mean[-features.shape[1] :])

    def deviation(self, columns: Columns, features: Matrix | None = None) -> Vector:
        """Return the standard deviations of the sums of maps, shape ``(n,)``."""
        design = self._design(columns, features)
        variances = ((design @ self._covariance) * design).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(variances, 0.0)))

    def _design(self, columns: Columns, features: Matrix | None) -> Matrix:
        design = np.zeros((len(columns), len(self.mean)))
        design[:, 0] = 1.0
        np.put_along_axis(design, columns, 1.0, axis=1)
        if features is not None:
            design[:, -features.shape[1] :] = features
        return design

    def draw(self, generator: np.random.Generator) -> Vector:
        """Return effects drawn from the belief about each, as if they were independent; shape ``(effects,)``."""
        deviations = np.sqrt(np.maximum(self._covariance.diagonal(), 0.0))
        return np.asarray(generator.normal(self.mean, deviations))
