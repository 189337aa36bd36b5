"""Predicts the accuracy drop from the divergence: a monotone curve fitted to measured maps."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

#: Exponents tried. Noise in embeddings lowers a correlation in proportion to 1 - cos. Decisions flip in
#: proportion to the size of the change of the logits, which is the square root of the divergence.
_EXPONENTS = (0.5, 1.0)
#: Lower bound on the scatter of relative accuracy drops around the curve.
_LEAST_SCATTER = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCurve:
    """``drop = slope * divergence ** exponent``, with scatter around it."""

    slope: float = 0.0
    exponent: float = 1.0
    #: Standard deviation of measured drops around the curve.
    scatter: float = 0.01

    @classmethod
    def fitted(cls, divergence: Vector, drop: Vector) -> "AccuracyCurve":
        """Return the least-squares fit.

        Args:
            divergence: of each measured map, shape ``(n,)``.
            drop: their accuracy drops relative to full precision, shape ``(n,)``.
        """
        if not np.any(divergence > 0):
            return cls()
        fits = []
        for exponent in _EXPONENTS:
            basis = divergence**exponent
            slope = max(0.0, float(basis @ drop / (basis @ basis)))
            fits.append((float(np.sqrt(np.mean((drop - slope * basis) ** 2))), exponent, slope))
        scatter, exponent, slope = min(fits)
        return cls(slope=slope, exponent=exponent, scatter=max(scatter, _LEAST_SCATTER))

    def drop(self, divergence: Vector) -> Vector:
        """Return the expected accuracy drops, relative to full precision."""
        return np.asarray(self.slope * np.maximum(divergence, 0.0) ** self.exponent)
