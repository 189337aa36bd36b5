"""Predicts response times under load from the latency of a request, using measured maps."""

from collections.abc import Sequence

import numpy as np

from autotune.planner.additive_model import Vector


class QueueingCurve:
    """Response times as an increasing function of the ratio of a request's latency to full precision's.

    Logarithms are interpolated between measured maps; beyond them, response times are proportional to ratios.
    """

    def __init__(self, pairs: Sequence[tuple[float, float]]) -> None:
        """Start from ratios and response times of one or more maps."""
        self._ratios, times = np.log(np.array(sorted(pairs))).T
        self._times = np.maximum.accumulate(times)

    def predict(self, ratios: Vector) -> Vector:
        """Return the expected response times of maps with these ratios, shape ``(n,)``."""
        logarithms = np.log(ratios)
        beyond = logarithms - np.clip(logarithms, self._ratios[0], self._ratios[-1])
        return np.asarray(np.exp(np.interp(logarithms, self._ratios, self._times) + beyond))

    def deviation(self, ratios: Vector, deviations: Vector) -> Vector:
        """Return the standard deviations of response times from those of the ratios."""
        slower, faster = ratios + deviations, np.maximum(ratios - deviations, 1e-3)
        # Response times grow at least as fast as request latencies, even where noise in the measured ones hides it.
        least = self.predict(ratios) * deviations / ratios
        return np.maximum((self.predict(slower) - self.predict(faster)) / 2.0, least)
