"""Latency as a distribution, measured against the full-precision model in the same minute.

Rounds alternate between the two models in the order A B, B A, A B, ..., so that both see the same
drift of clock speed and background load; their ratio is then stable even where absolute times are not. The first
pass after each change of model is not timed, because the caches still hold the other model's data.

A round in which another process occupied the processor is measured again. The operating system reports this; latencies
must not decide it. Selecting rounds by the reference's latencies would make the reference look faster than it is, and
the candidate's own slow passes must not be dropped.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workers.measurement import LatencySamples, Workload
from workers.timing.clock import time_ms
from workers.timing.cpu_waits import waited_ms
from workers.timing.estimates import REFERENCE_PER_ROUND

#: Timed passes of the candidate per round.
CANDIDATE_PER_ROUND = 10

#: A round was disturbed if threads waited for a processor for more than this share of it.
_DISTURBED = 0.02
#: Maximum number of rounds, as a multiple of those wanted, to replace disturbed ones.
_MOST_ROUNDS = 2

#: Share of its fortune that each bettor stakes per round, and the accepted risk of giving up a hopeful candidate.
#: At least five rounds above the limit are needed for a decision; one round below it ruins the first bettor only.
_STAKES, _RISK = np.array([1.0, 0.6]), 0.05

#: Runs one pass to its end and returns its milliseconds.
TimePass = Callable[[Callable[[], object]], float]

#: Warm-up ends when the medians of two neighbouring windows differ by less than this share.
_STABLE = 0.02
_WINDOW = 5
#: Warm-up stops waiting for stability after this many times its minimum duration.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model to time."""

    #: Installs the map to time.
    install: Callable[[], None]
    #: Runs one forward pass; the clock waits for it to end.
    run: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Latencies of one round, in ms."""

    candidate_ms: list[float]
    reference_ms: list[float]
    #: Total time that threads waited for a processor, in ms.
    waited_ms: float
    elapsed_ms: float


def measure(
    candidate: Contender,
    reference: Contender,
    *,
    batch_size: int,
    repeats: int,
    warmup_s: float,
    hopeless: float = math.inf,
    workload: Workload = Workload.FORWARD,
    time_pass: TimePass = time_ms,
) -> LatencySamples:
    """Return at least ``repeats`` latencies of the candidate, interleaved with latencies of the reference.

    Timing stops early if the latency ratio is clearly above ``hopeless``. The garbage collector is disabled
    during timing; the caller holds the device lock. The candidate is installed when the call returns.
    """
    candidate.install()
    _warm_up(candidate.run, warmup_s, time_pass)
    collecting = gc.isenabled()
    gc.disable()
    try:
        rounds = _measure_rounds(
            candidate, reference, time_pass, wanted=math.ceil(repeats / CANDIDATE_PER_ROUND), hopeless=hopeless
        )
    finally:
        if collecting:
            gc.enable()
    candidate.install()
    return LatencySamples(
        workload=workload,
        batch_size=batch_size,
        candidate_ms=np.array([latency for timed in rounds for latency in timed.candidate_ms]),
        reference_ms=np.array([latency for timed in rounds for latency in timed.reference_ms]),
    )


def _measure_rounds(
    candidate: Contender, reference: Contender, time_pass: TimePass, *, wanted: int, hopeless: float
) -> list[_Round]:
    """Return the ``wanted`` least disturbed rounds, in measurement order; fewer if the candidate is hopeless."""
    rounds: list[_Round] = []
    doubt = Doubt(hopeless)
    while len(rounds) < wanted or (_quiet(rounds) < wanted and len(rounds) < _MOST_ROUNDS * wanted):
        timed = _measure_round(candidate, reference, time_pass, candidate_first=len(rounds) % 2 == 1)
        rounds.append(timed)
        # In the second half, stopping early would save little.
        if doubt.is_settled_by(timed.candidate_ms, timed.reference_ms) and 2 * len(rounds) <= wanted:
            return rounds
    # Sort by absolute waiting time, not by its share: a disturbed round is longer, which lowers the share.
    by_waiting = sorted(range(len(rounds)), key=lambda index: rounds[index].waited_ms)
    return [rounds[index] for index in sorted(by_waiting[:wanted])]


class Doubt:
    """A sequential test, updated every round, of whether a candidate is slower than a limit.

    A bettor wins a round whose latency ratio is above the limit. If the median ratio is not above the limit, the
    expected gain is at most zero, so the fortune ever reaches ``1 / _RISK`` with probability at most ``_RISK`` (Ville's
    inequality; Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024).
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._fortunes = np.ones(len(_STAKES))

    def is_settled_by(self, candidate_ms: Sequence[float], reference_ms: Sequence[float]) -> bool:
        """Add one round; return whether the candidate is slower than the limit beyond reasonable doubt."""
        above = statistics.median(candidate_ms) > self._limit * statistics.median(reference_ms)
        self._fortunes = self._fortunes * (1.0 + _STAKES if above else 1.0 - _STAKES)
        return bool(self._fortunes.mean() >= 1.0 / _RISK)


def _measure_round(candidate: Contender, reference: Contender, time_pass: TimePass, *, candidate_first: bool) -> _Round:
    start, waited_before = time.perf_counter(), waited_ms()
    if candidate_first:
        candidate_ms = _time_block(candidate, CANDIDATE_PER_ROUND, time_pass)
        reference_ms = _time_block(reference, REFERENCE_PER_ROUND, time_pass)
    else:
        reference_ms = _time_block(reference, REFERENCE_PER_ROUND, time_pass)
        candidate_ms = _time_block(candidate, CANDIDATE_PER_ROUND, time_pass)
    return _Round(
        candidate_ms=candidate_ms,
        reference_ms=reference_ms,
        waited_ms=waited_ms() - waited_before,
        elapsed_ms=(time.perf_counter() - start) * 1e3,
    )


def _quiet(rounds: list[_Round]) -> int:
    """Return the number of undisturbed rounds."""
    return sum(timed.waited_ms <= _DISTURBED * timed.elapsed_ms for timed in rounds)


def _time_block(contender: Contender, passes: int, time_pass: TimePass) -> list[float]:
    contender.install()
    return [time_pass(contender.run) for _ in range(1 + passes)][1:]


def _warm_up(run: Callable[[], object], least_s: float, time_pass: TimePass) -> None:
    """Run until ``least_s`` seconds have passed and latencies have settled."""
    start = time.perf_counter()
    recent: list[float] = []
    while True:
        recent.append(time_pass(run))
        elapsed = time.perf_counter() - start
        if elapsed >= _PATIENCE * least_s and len(recent) >= _WINDOW:
            return
        if elapsed >= least_s and len(recent) >= 2 * _WINDOW and _settled(recent):
            return


def _settled(latencies: list[float]) -> bool:
    before = statistics.median(latencies[-2 * _WINDOW : -_WINDOW])
    after = statistics.median(latencies[-_WINDOW:])
    return abs(after / before - 1.0) < _STABLE
