"""A Bayesian additive model: a value is the sum of one effect per group, that of the group's choice.

The effects have a Gaussian posterior, so observations update it in closed form (Rasmussen and
Williams, 2006, chapter 2). Errors of the prior are partly shared: a prior that underestimates int8
in one layer underestimates it in others too. Shared factors model this, so that a handful of
observations can correct hundreds of effects.
"""

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
#: The number of one effect per group, shape ``(maps, groups)``; effect 0 is in every map.
Columns = npt.NDArray[np.intp]

#: Lower bound on the noise of a value, relative to the standard deviation predicted for it.
_LEAST_NOISE = 1e-6

#: Observations collected before they are written into the covariance.
_MAX_DEFERRED = 32
#: Rows of the covariance written at once.
_BLOCK = 64


class AdditiveModel:
    """The posterior of the effects, and predictions of their sums."""

    def __init__(self, mean: Vector, spread: Vector, shared: Matrix) -> None:
        """Start from a prior.

        Args:
            mean: of each effect, shape ``(effects,)``.
            spread: independent standard deviation of each effect, shape ``(effects,)``.
            shared: shift of each effect by one standard deviation of each shared factor, shape ``(factors, effects)``.
        """
        #: Expected effects, shape ``(effects,)``.
        self.mean = mean.copy()
        # The current covariance is this matrix minus the product of the two below: the matrix is too large to be
        # rewritten at every observation.
        self._covariance = np.diag(spread**2) + shared.T @ shared
        self._spreads = self._gains = np.empty((0, len(mean)))

    def observe(self, columns: Columns, values: Vector, noise: Vector, features: Matrix | None = None) -> None:
        """Update the posterior with measured sums.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: the measured sums, shape ``(n,)``.
            noise: standard deviation of each value, shape ``(n,)``.
            features: factor of each of the last effects in each map, if not all effects belong to choices,
                shape ``(n, features)``.
        """
        design = self._design(columns, features)
        touched = np.flatnonzero(design.any(axis=0))
        spreads = design[:, touched] @ self._covariance[touched] - (design @ self._spreads.T) @ self._gains
        between = spreads @ design.T
        # Almost exact values for sums of the same uncertain effects would make the system singular.
        own = np.maximum(noise**2, _LEAST_NOISE**2 * between.diagonal())
        gains = np.linalg.solve(between + np.diag(own), spreads)
        self.mean += (values - design @ self.mean) @ gains
        self._spreads, self._gains = np.vstack([self._spreads, spreads]), np.vstack([self._gains, gains])
        if len(self._gains) >= _MAX_DEFERRED:
            self._write_deferred()

    def _write_deferred(self) -> None:
        for start in range(0, len(self.mean), _BLOCK):  # in blocks that fit the caches
            rows = slice(start, start + _BLOCK)
            self._covariance[rows] -= self._spreads[:, rows].T @ self._gains
        self._spreads = self._gains = self._gains[:0]

    def scale(self, effects: npt.NDArray[np.bool_], factor: float) -> None:
        """Multiply the effects marked in a mask of shape ``(effects,)``, and their deviations, by a factor."""
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
        """Return effects drawn from their marginal posteriors, as if they were independent; shape ``(effects,)``."""
        variances = self._covariance.diagonal() - (self._spreads * self._gains).sum(axis=0)
        return np.asarray(generator.normal(self.mean, np.sqrt(np.maximum(variances, 0.0))))
