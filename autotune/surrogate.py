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

    def observe(self, columns: Columns, values: Vector, noise: Vector) -> None:
        """Update the beliefs by measured sums.

        Args:
            columns: the maps, shape ``(n, groups)``.
            values: what was measured, shape ``(n,)``.
            noise: standard deviation of each value, shape ``(n,)``.
        """
        design = np.zeros((len(columns), len(self.mean)))
        design[:, 0] = 1.0
        np.put_along_axis(design, columns, 1.0, axis=1)
        spreads = design @ self._covariance
        gain = np.linalg.solve(spreads @ design.T + np.diag(noise**2), spreads)
        self.mean += (values - design @ self.mean) @ gain
        self._covariance -= spreads.T @ gain

    def scale(self, effects: npt.NDArray[np.bool_], factor: float) -> None:
        """Multiply the beliefs about some effects, marked in a mask of shape ``(effects,)``, by a factor."""
        factors = np.where(effects, factor, 1.0)
        self.mean *= factors
        self._covariance *= np.outer(factors, factors)

    def predict(self, columns: Columns) -> Vector:
        """Return the expected sums of maps, shape ``(n,)``."""
        return np.asarray(self.mean[0] + self.mean[columns].sum(axis=1))

    def deviation(self, columns: Columns) -> Vector:
        """Return the standard deviations of the sums of maps, shape ``(n,)``."""
        with_constant = np.column_stack([np.zeros(len(columns), dtype=np.intp), columns])
        variances = [self._covariance[np.ix_(row, row)].sum() for row in with_constant]
        return np.sqrt(np.maximum(variances, 0.0))

    def draw(self, generator: np.random.Generator) -> Vector:
        """Return effects drawn from the belief about each, as if they were independent; shape ``(effects,)``."""
        deviations = np.sqrt(np.maximum(self._covariance.diagonal(), 0.0))
        return np.asarray(generator.normal(self.mean, deviations))
