"""Paired tests of a candidate revision on requests that the active one answered as well, valid at every look.

Two gamblers watch each figure. One bets that its mean is below the slack, the other that it is above. The capital of
the bet ``b`` is multiplied by ``1 + b (x - slack)``. If the mean is on the other side of the slack given the past, the
expected capital never grows, so it ever reaches ``1 / alpha`` with probability at most ``alpha``, however often one
looks (Ville). A mixture of bets needs no tuning (Waudby-Smith and Ramdas, Estimating means of bounded random variables
by betting, 2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from autotune.errors import JobSpecError

#: Fewest pairs of a candidate that passes.
LEAST_PAIRS = 300
#: Sizes of the bets, relative to the largest that cannot go bankrupt.
_BETS = np.array([0.01, 0.03, 0.1, 0.2, 0.4, 0.8])


class Verdict(StrEnum):
    """What a test says so far."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Evidence about the mean of a bounded figure against a slack, in the unit of the figure."""

    #: The bounds of the figure; observations outside count as the nearer one.
    low: float
    high: float
    #: The largest mean that is acceptable.
    slack: float
    #: Observations so far, and their sum.
    count: int = 0
    total: float = 0.0
    #: Logarithms of the capitals of bets below and above the slack; shape ``(2, bets)``.
    log_capitals: npt.NDArray[np.float64]

    @classmethod
    def of(cls, *, low: float, high: float, slack: float) -> Self:
        """Return a test without observations.

        Raises:
            JobSpecError: if the slack is not between the bounds.
        """
        if not low < slack < high:
            raise JobSpecError(f"a slack must be between {low} and {high}, but got {slack}; take one between them")
        return cls(low=low, high=high, slack=slack, log_capitals=np.zeros((2, len(_BETS))))

    def with_observation(self, value: float) -> Self:
        """Return the evidence after one more observation; nan counts as the worst."""
        seen = self.high if np.isnan(value) else min(max(value, self.low), self.high)
        # The worst observation takes the share of the capital that the bet stakes.
        below = _BETS * (self.slack - seen) / (self.high - self.slack)
        above = _BETS * (seen - self.slack) / (self.slack - self.low)
        return type(self)(
            low=self.low,
            high=self.high,
            slack=self.slack,
            count=self.count + 1,
            total=self.total + seen,
            log_capitals=self.log_capitals + np.log1p(np.stack([below, above])),
        )

    def verdict(self, alpha: float) -> Verdict:
        """Return what the evidence says; each of pass and fail is wrong with probability at most ``alpha``."""
        peak = self.log_capitals.max(axis=1, keepdims=True)
        below, above = peak[:, 0] + np.log(np.exp(self.log_capitals - peak).mean(axis=1)) >= -np.log(alpha)
        if above:
            return Verdict.FAIL
        return Verdict.PASS if below and self.count >= LEAST_PAIRS else Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence for and against a candidate: one test per figure."""

    #: Figure, such as divergence, latency ratio and errors -> its test.
    figures: Mapping[str, Mean]
    #: Probability that a candidate fails or passes wrongly, over all figures.
    alpha: float = 0.05

    def with_pair(self, observed: Mapping[str, float]) -> Self:
        """Return the evidence after one request that both revisions ran.

        Raises:
            JobSpecError: if the figures are not those of the tests.
        """
        if observed.keys() != self.figures.keys():
            raise JobSpecError(
                f"a pair must have the figures {sorted(self.figures)}, but got {sorted(observed)}; record all of them"
            )
        tests = {name: test.with_observation(observed[name]) for name, test in self.figures.items()}
        return type(self)(figures=tests, alpha=self.alpha)

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """Each figure's verdict."""
        return {name: test.verdict(self.alpha / len(self.figures)) for name, test in self.figures.items()}

    @property
    def verdict(self) -> Verdict:
        """Fail if a figure fails, pass if all pass."""
        found = set(self.verdicts.values())
        if Verdict.FAIL in found:
            return Verdict.FAIL
        return Verdict.PASS if found == {Verdict.PASS} else Verdict.INCONCLUSIVE


def has_decayed(divergence: Mean, alpha: float) -> bool:
    """Return whether shadow runs of full precision show a mean divergence above the promised one, its slack."""
    return divergence.verdict(alpha) is Verdict.FAIL
