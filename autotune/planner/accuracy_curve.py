"""Predicts the accuracy drop from the divergence: a monotone curve fitted to measured maps, with its uncertainty."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

#: Exponents tried. Noise in embeddings lowers a correlation in proportion to 1 - cos. Decisions flip in
#: proportion to the size of the change of the logits, which is the square root of the divergence.
_EXPONENTS = np.array([0.5, 0.75, 1.0])
#: Standard deviation of measured drops around the curve: of all of them, and relative to the drop. The fit scales both.
_SCATTER, _RELATIVE_SCATTER = 1e-3, 0.2
#: Factor on the scatter before any map was measured, and number of maps that this guess counts for.
_GUESS, _GUESS_MAPS = 10.0, 2.0
#: Drops beyond this one count as this one: nothing is left to lose.
_MOST = 0.98
#: Divergences below this one count as this one where something is relative to them; no quotient overflows.
_LEAST = 1e-100


def _constant(value: float) -> Vector:
    return np.full(len(_EXPONENTS), value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AccuracyCurve:
    """``drop = 1 - exp(-slope * divergence ** exponent)``, averaged over the exponents.

    Far from the measured maps, the exponents disagree; near them, those that explain them best decide. Arrays have one
    value per exponent.
    """

    slopes: Vector = field(default_factory=lambda: _constant(0.0))
    #: Standard deviations of the slopes.
    deviations: Vector = field(default_factory=lambda: _constant(0.0))
    #: Probability of each exponent.
    weights: Vector = field(default_factory=lambda: _constant(1.0 / len(_EXPONENTS)))
    #: Factor on the scatter of measured drops around the curve.
    scatter: float = _GUESS

    @classmethod
    def fitted(cls, divergence: Vector, drop: Vector) -> "AccuracyCurve":
        """Return the weighted least-squares fit of each exponent, with the exponents' posterior probabilities.

        The scale of the noise is unknown, so the probabilities are those of Student's t (Gelman et al., Bayesian Data
        Analysis, 3rd edition, section 14.2).

        Args:
            divergence: of each measured map, shape ``(n,)``.
            drop: their accuracy drops relative to full precision, shape ``(n,)``.
        """
        if not np.any(divergence > 0):
            return cls()
        lost = -np.log1p(-np.minimum(drop, _MOST))
        basis = divergence ** _EXPONENTS[:, None]
        # Each drop's noise follows from a first fit, because the measured drop itself is noisy.
        rough = np.maximum(lost.sum() / basis.sum(axis=1, keepdims=True), 0.0) * basis
        noise = np.hypot(_SCATTER, _RELATIVE_SCATTER * rough)
        squares = ((basis / noise) ** 2).sum(axis=1)
        slopes = np.maximum((basis * lost / noise**2).sum(axis=1) / squares, 0.0)
        misses = (((lost - slopes[:, None] * basis) / noise) ** 2).sum(axis=1)
        freedom = _GUESS_MAPS + len(drop)
        evidence = -np.log(noise).sum(axis=1) - 0.5 * freedom * np.log(_GUESS_MAPS + misses)
        weights = np.exp(evidence - evidence.max())
        scatter = float(np.sqrt((_GUESS_MAPS + misses.min()) / freedom))
        return cls(
            slopes=slopes, deviations=scatter / np.sqrt(squares), weights=weights / weights.sum(), scatter=scatter
        )

    def drop(self, divergence: Vector) -> Vector:
        """Return the expected accuracy drops, relative to full precision; shape ``(n,)``."""
        return np.asarray(self.weights @ -np.expm1(-self._lost(divergence)))

    def deviation(self, divergence: Vector, spread: Vector) -> Vector:
        """Return the standard deviations of the accuracy drops, shape ``(n,)``.

        Args:
            divergence: the expected divergences, shape ``(n,)``.
            spread: their standard deviations, shape ``(n,)``.
        """
        lost, exponents = self._lost(divergence), _EXPONENTS[:, None]
        relative = exponents * spread / np.maximum(divergence, _LEAST)
        each = np.sqrt(
            self.scatter**2 * (_SCATTER**2 + (_RELATIVE_SCATTER * lost) ** 2)
            + (np.maximum(divergence, 0.0) ** exponents * self.deviations[:, None]) ** 2
            + (lost * relative) ** 2
        )
        apart = -np.expm1(-lost) - self.drop(divergence)
        return np.asarray(np.sqrt(self.weights @ ((np.exp(-lost) * each) ** 2 + apart**2)))

    def _lost(self, divergence: Vector) -> Vector:
        """Return minus the logarithm of the accuracy that is left, shape ``(exponents, n)``."""
        return np.asarray(self.slopes[:, None] * np.maximum(divergence, 0.0) ** _EXPONENTS[:, None])
