"""A Bayesian additive model: a value is the sum of one effect for each group's choice.

Posterior about the effects are Gaussian, so observations update them in closed form (Rasmussen and
Williams, 2006, chapter 2). EffectIndex are wrong in common as well as one by one: a prior that
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

#: Observations that are not written into the covariance one by one.
_UNWRITTEN = 32
#: Rows of the covariance written at once.
_BLOCK = 64


class AdditiveModel:
    """Posterior about the effects, and predictions of their sums."""

    def __init__(self, mean: Vector, spread: Vector, shared: Matrix) -> None:
        """Start from a prior.

        Args:
            mean: of each effect, shape ``(effects,)``.
            spread: standard deviation of each effect by itself, shape ``(effects,)``.
            shared: rows of effects that are wrong together, by one standard deviation, shape ``(factors, effects)``.
        """
        #: Expected effects, shape ``(effects,)``.
        self.mean = mean.copy()
        # The covariance is that of some time ago, less what was learned since, the product of these two: it is too
        # large to be written at every observation.
        self._covariance = np.diag(spread**2) + shared.T @ shared
        self._spreads = self._gains = np.empty((0, len(mean)))

    def observe(self, columns: Columns, values: Vector, noise: Vector, features: Matrix | None = None) -> None:
        """Update the posterior by measured sums.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: what was measured, shape ``(n,)``.
            noise: standard deviation of each value, shape ``(n,)``.
            features: how much of each of the last effects a map has, if not all effects are groups' choices,
                shape ``(n, features)``.
        """
        design = self._design(columns, features)
        touched = np.flatnonzero(design.any(axis=0))
        spreads = design[:, touched] @ self._covariance[touched] - (design @ self._spreads.T) @ self._gains
        between = spreads @ design.T
        # Sums of the same uncertain effects, known next to exactly, would make the system singular.
        own = np.maximum(noise**2, _LEAST_NOISE**2 * between.diagonal())
        gains = np.linalg.solve(between + np.diag(own), spreads)
        self.mean += (values - design @ self.mean) @ gains
        self._spreads, self._gains = np.vstack([self._spreads, spreads]), np.vstack([self._gains, gains])
        if len(self._gains) >= _UNWRITTEN:
            self._write()

    def _write(self) -> None:
        for start in range(0, len(self.mean), _BLOCK):  # block by block, because one of all would leave the caches
            rows = slice(start, start + _BLOCK)
            self._covariance[rows] -= self._spreads[:, rows].T @ self._gains
        self._spreads = self._gains = self._gains[:0]

    def scale(self, effects: npt.NDArray[np.bool_], factor: float) -> None:
        """Multiply the posterior about some effects, marked in a mask of shape ``(effects,)``, by a factor."""
        factors = np.where(effects, factor, 1.0)
        self.mean *= factors
        self._covariance *= np.outer(factors, factors)
        self._spreads, self._gains = self._spreads * factors, self._gains * factors

    def predict(self, columns: Columns, features: Matrix | None = None) -> Vector:
        """Return the expected sums of maps, shape ``(n,)``."""
        sums = self.mean[0] + self.mean[columns].sum(axis=1)
        return np.asarray(sums if features is None else sums + features @ self.mean[-features.shape[1] :])

    def deviation(self, columns: Columns, features: Matrix | None = None) -> Vector:
        """Return the standard deviations of the sums of maps, shape ``(n,)``."""
        design = self._design(columns, features)
        touched = np.flatnonzero(design.any(axis=0))
        design = design[:, touched]
        variances = ((design @ self._covariance[np.ix_(touched, touched)]) * design).sum(axis=1)
        variances -= ((design @ self._spreads[:, touched].T) * (design @ self._gains[:, touched].T)).sum(axis=1)
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
        variances = self._covariance.diagonal() - (self._spreads * self._gains).sum(axis=0)
        return np.asarray(generator.normal(self.mean, np.sqrt(np.maximum(variances, 0.0))))
