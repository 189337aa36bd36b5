"""Alarms with a bounded rate of false ones for inputs that leave the calibrated ranges of static layers.

With the range of ``n`` exchangeable calibration inputs, the next input leaves it with a mean probability of
``2 / (n + 1)``; given those inputs, the probability has the distribution Beta(2, n - 1) (Vovk, Conditional validity of
inductive conformal predictors, 2012). Each layer bets that its inputs leave more often than that. The bets restart at
every window as in Shiryaev and Roberts, so that the expected number of windows until a false alarm is at least
``1 / alpha`` (Shin, Ramdas and Rinaldo, E-detectors, 2024). The mean over layers has that property whatever their
dependence.

Padding is no input: whoever counts must mask it. Votes must be exchangeable; ``autotune.deployments.thinning`` decides
which requests vote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from autotune.errors import JobSpecError

#: Each layer bets on rates of exceedance at these shares of the way from its null to certainty.
_TOWARDS_ALL = np.array([0.02, 0.05, 0.12, 0.3, 0.6, 0.99])
#: Probability that some layer leaves its range more often than its limit although nothing drifts.
RISK = 0.05
#: Largest share of its range that a layer used for ``WIDE_AFTER_S`` seconds if the range is called too wide.
WIDE_BELOW = 0.25
WIDE_AFTER_S = 86_400.0


def exceedance_limit(calibration_inputs: int, *, layers: int) -> float:
    """Return the rate that inputs leaving a min-max range exceed, in any of the layers, with probability ``RISK``.

    It is a quantile of Beta(2, n - 1), whose distribution function at p is ``P(Binomial(n, p) >= 2)``. One calibration
    set gives the ranges of all layers, so the risk is divided among them: with 40 layers, two would else be expected
    to leave their ranges more often than the limit, and evidence against them would grow without drift.

    Args:
        calibration_inputs: inputs that the range covers.
        layers: layers that are watched.

    Raises:
        JobSpecError: if there are fewer than 2 calibration inputs.
    """
    n = calibration_inputs
    if n < 2:
        raise JobSpecError(f"drift needs at least 2 calibration inputs, but got {n}; calibrate with 256 or more")
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2.0
        if 1.0 - (1.0 - p) ** n - n * p * (1.0 - p) ** (n - 1) < 1.0 - RISK / layers:
            low = p
        else:
            high = p
    return high


def held_out_limit(exceedances: int, held_out: int, *, layers: int) -> float:
    """Return the same for ranges by percentiles: an upper confidence bound (Clopper and Pearson, 1934).

    Args:
        exceedances: held-out inputs that left the range.
        held_out: inputs that had no part in the range.
        layers: layers that are watched.

    Raises:
        JobSpecError: if the counts are not ``0 <= exceedances < held_out``.
    """
    if not 0 <= exceedances < held_out:
        raise JobSpecError(
            f"exceedances must be at least 0 and fewer than the held-out inputs, but got {exceedances} of {held_out}; "
            "hold out more calibration inputs or widen the range"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2.0
        if _at_most(exceedances, held_out, p) > RISK / layers:
            low = p
        else:
            high = p
    return high


def _at_most(count: int, trials: int, probability: float) -> float:
    """Return the distribution function of the binomial distribution."""
    term = total = (1.0 - probability) ** trials
    for k in range(count):
        term *= (trials - k) / (k + 1) * probability / (1.0 - probability)
        total += term
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """Evidence of drift of the static layers of one revision."""

    #: The deployed revision; evidence about another one says nothing.
    revision: int
    #: Names of the layers.
    layers: tuple[str, ...]
    #: Largest rates at which inputs leave the ranges without drift; shape ``(layers,)``.
    limits: npt.NDArray[np.float64]
    #: Logarithms of the sums of restarted capitals; shape ``(layers, bets)``; -inf before the first window.
    log_sums: npt.NDArray[np.float64]

    @classmethod
    def fresh(cls, revision: int, limits: Mapping[str, float]) -> Self:
        """Return the state right after a deploy.

        Raises:
            JobSpecError: if there are no layers, or a limit is not between 0 and 1.
        """
        if not limits or not all(0.0 < limit < 1.0 for limit in limits.values()):
            raise JobSpecError(
                f"drift needs one or more layers with a rate between 0 and 1, but got {dict(limits)}; "
                "leave dynamic layers out"
            )
        return cls(
            revision=revision,
            layers=tuple(limits),
            limits=np.array(list(limits.values())),
            log_sums=np.full((len(limits), len(_TOWARDS_ALL)), -np.inf),
        )

    @property
    def evidence(self) -> npt.NDArray[np.float64]:
        """Each layer's mean over its bets; shape ``(layers,)``."""
        # Beyond e^700 float64 overflows; nothing decides there.
        return np.asarray(np.exp(np.minimum(self.log_sums, 700.0)).mean(axis=1))


def updated(
    state: DriftState, *, outside: npt.NDArray[np.integer], votes: npt.NDArray[np.integer] | int = 1
) -> DriftState:
    """Return the state after one window, or one request.

    Counts of windows of the same minutes from several replicas may be added first; states cannot be merged.

    Args:
        state: the evidence so far.
        outside: votes in which the layer's inputs left its range; shape ``(layers,)``.
        votes: votes of the window, for each layer or for all.

    Raises:
        JobSpecError: if the counts have another shape or are not ``0 <= outside <= votes``.
    """
    if outside.shape != state.limits.shape or (outside < 0).any() or (outside > votes).any():
        raise JobSpecError(
            f"a window must count 0 to {votes} exceedances for each of {len(state.layers)} layers, but got "
            f"{outside.tolist()}; count each vote once per layer"
        )
    null = state.limits[:, None]
    bet = null + (1.0 - null) * _TOWARDS_ALL
    hits, misses = outside[:, None], np.broadcast_to(np.asarray(votes) - outside, outside.shape)[:, None]
    log_gain = hits * np.log(bet / null) + misses * np.log((1.0 - bet) / (1.0 - null))
    log_sums = np.logaddexp(0.0, state.log_sums) + log_gain
    return DriftState(revision=state.revision, layers=state.layers, limits=state.limits, log_sums=log_sums)


def is_alarm(state: DriftState, alpha: float) -> bool:
    """Return whether some layers drifted; without drift, at most once per ``1 / alpha`` windows in expectation."""
    return bool(state.evidence.mean() >= 1.0 / alpha)


def named(state: DriftState, alpha: float) -> tuple[str, ...]:
    """Return the layers with the strongest evidence, in the order of the model.

    It is the rule of e-BH: the k strongest layers are named if each has evidence of at least ``layers / (k alpha)``
    (Wang and Ramdas, False discovery rate control with e-values, 2022). An alarm may name no layer.
    """
    chosen = benjamini_hochberg(state.evidence, alpha)
    return tuple(layer for layer, is_chosen in zip(state.layers, chosen, strict=True) if is_chosen)


def benjamini_hochberg(evidence: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.bool_]:
    """Return which hypotheses e-BH rejects; shape ``(hypotheses,)``."""
    ranked = np.sort(evidence)[::-1]
    (enough,) = np.nonzero(ranked * np.arange(1, len(ranked) + 1) >= len(ranked) / alpha)
    return np.zeros(evidence.shape, dtype=bool) if not len(enough) else evidence >= ranked[enough[-1]]


def too_wide(layers: Sequence[str], used_shares: npt.NDArray[np.float64], watched_s: float) -> tuple[str, ...]:
    """Return layers whose range deserves the advice to calibrate again: they never clip, but waste codes.

    Args:
        layers: their names.
        used_shares: largest share of its range that each used while watched, from 0 to 1; shape ``(layers,)``.
        watched_s: seconds of watching; nothing is advised before ``WIDE_AFTER_S``.
    """
    if watched_s < WIDE_AFTER_S:
        return ()
    return tuple(layer for layer, share in zip(layers, used_shares, strict=True) if share < WIDE_BELOW)


def predicted_loss(sensitivities: Mapping[str, float], error_increases: Mapping[str, float]) -> float:
    """Return the increase of the loss to expect, in the unit of the probes, for example nats of divergence.

    Losses of layers add, as in the search.

    Args:
        sensitivities: layer -> loss that the layer's quantization alone costs, from the stored probes.
        error_increases: layer -> increase of its quantization error relative to the calibrated one: 0 if unchanged.

    Raises:
        JobSpecError: if a layer was not probed.
    """
    if unknown := error_increases.keys() - sensitivities.keys():
        raise JobSpecError(
            f"a predicted loss needs a probe of each layer, but {sorted(unknown)} have none; probe or omit them"
        )
    return sum(sensitivities[layer] * increase for layer, increase in error_increases.items())
