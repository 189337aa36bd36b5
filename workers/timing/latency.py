"""Latency as a distribution, measured against the full-precision model in the same minute.

Rounds alternate between the two models in the order A B, B A, A B, ..., so that both see the same
drift of clock speed and background load; their ratio is then stable even where absolute times are not. The first
pass after each change of model is not timed, because the caches still hold the other model's data.

A round in which another process occupied the processor is measured again. The operating system reports this; latencies
must not decide it. Selecting rounds by the reference's latencies would make the reference look faster than it is, and
the candidate's own slow passes must not be dropped.
"""

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.measurement import LatencySamples, Workload
from workers.progress import Report, Stage, Step, silent
from workers.timing.clock import time_ms
from workers.timing.cpu_waits import waited_ms
from workers.timing.estimates import REFERENCE_PER_ROUND, latency_ratio

#: Timed passes of the candidate per round.
CANDIDATE_PER_ROUND = 10

#: A round was disturbed if threads waited for a processor for more than this share of it.
_DISTURBED = 0.02
#: Maximum number of rounds, as a multiple of those wanted, to replace disturbed ones.
_MOST_ROUNDS = 2
#: Least undisturbed rounds before timing stops because the latency ratio is known well enough.
_LEAST_ROUNDS = 4
#: Such timing makes its rounds of slow passes shorter: about this many seconds of the candidate, but not fewer passes.
_ROUND_S, _LEAST_PER_ROUND = 0.5, 3

#: Share of its fortune that each bettor stakes per round, and the accepted risk of giving up a hopeful candidate.
#: At least five rounds above the limit are needed for a decision; one round below it ruins the first bettor only.
_STAKES, _RISK = np.array([1.0, 0.6]), 0.05

#: Runs one pass to its end and returns its milliseconds.
TimePass = Callable[[Callable[[], object]], float]

#: Warm-up ends when the medians of two neighbouring windows differ by less than this share.
_STABLE = 0.02
_WINDOW = 5
#: Passes of a warm-up, however slow they are.
_LEAST_WARM_UP = 2
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
    half_width: float | None = None,
    budget_s: float = math.inf,
    hopeless: float = math.inf,
    workload: Workload = Workload.FORWARD,
    time_pass: TimePass = time_ms,
    report: Report = silent,
) -> LatencySamples:
    """Return latencies of the candidate, interleaved with latencies of the reference.

    The garbage collector is disabled during timing; the caller holds the device lock. The candidate is installed when
    the call returns.

    Args:
        candidate: the map to time.
        reference: full precision.
        batch_size: samples per pass, to record.
        repeats: passes of the candidate in as many rounds of ``CANDIDATE_PER_ROUND`` as they need.
        warmup_s: minimum seconds of warm-up.
        half_width: timing stops once the 95 % interval of the latency ratio reaches at most this share of the ratio
            to either side; None always times ``repeats`` passes.
        budget_s: seconds after which timing ends, once the least rounds are made; only with a ``half_width``, because
            percentiles of the tail need all passes.
        hopeless: latency ratio; timing stops if the candidate's is clearly above it.
        workload: what a pass runs, to record.
        time_pass: times one pass.
        report: gets every round.
    """
    start = time.perf_counter()
    wanted = math.ceil(repeats / CANDIDATE_PER_ROUND)
    report(Step(stage=Stage.LATENCY, total=wanted))
    candidate.install()
    pass_ms = _warm_up(candidate.run, warmup_s, time_pass)
    passes = CANDIDATE_PER_ROUND
    if half_width is not None:
        passes = min(passes, max(_LEAST_PER_ROUND, round(1e3 * _ROUND_S / max(pass_ms, 1e-3))))
    times = functools.partial(_measure_round, candidate, reference, time_pass, passes=passes)
    collecting = gc.isenabled()
    gc.disable()
    try:
        rounds, gave_up = _measure_rounds(
            times,
            wanted=wanted,
            half_width=half_width,
            ends_at=start + budget_s,
            hopeless=hopeless,
            report=report,
        )
    finally:
        if collecting:
            gc.enable()
    candidate.install()
    return _samples(rounds, workload=workload, batch_size=batch_size, gave_up=gave_up)


def _samples(rounds: Sequence[_Round], **recorded: Any) -> LatencySamples:
    return LatencySamples(
        candidate_ms=np.array([latency for timed in rounds for latency in timed.candidate_ms]),
        reference_ms=np.array([latency for timed in rounds for latency in timed.reference_ms]),
        **recorded,
    )


def _measure_rounds(
    measure_round: Callable[..., _Round],
    *,
    wanted: int,
    half_width: float | None,
    ends_at: float,
    hopeless: float,
    report: Report,
) -> tuple[list[_Round], bool]:
    """Return rounds in measurement order, and whether timing gave up because the candidate is hopeless.

    These are the undisturbed rounds once they suffice for ``half_width``, else the ``wanted`` least disturbed rounds;
    fewer if the time ends before.
    """
    rounds: list[_Round] = []
    doubt = Doubt(hopeless)
    while len(rounds) < wanted or (len(_quiet(rounds)) < wanted and len(rounds) < _MOST_ROUNDS * wanted):
        timed = measure_round(candidate_first=len(rounds) % 2 == 1)
        rounds.append(timed)
        report(Step(stage=Stage.LATENCY, done=min(len(rounds), wanted), total=wanted))
        # In the second half, stopping early would save little.
        if doubt.is_settled_by(timed.candidate_ms, timed.reference_ms) and 2 * len(rounds) <= wanted:
            return rounds, True
        if half_width is not None and _suffice(_quiet(rounds), half_width):
            return _quiet(rounds), False
        if half_width is not None and len(rounds) >= _LEAST_ROUNDS and time.perf_counter() > ends_at:
            break
    # Sort by absolute waiting time, not by its share: a disturbed round is longer, which lowers the share.
    by_waiting = sorted(range(len(rounds)), key=lambda index: rounds[index].waited_ms)
    return [rounds[index] for index in sorted(by_waiting[:wanted])], False


def _suffice(rounds: Sequence[_Round], half_width: float) -> bool:
    """Return whether rounds determine the latency ratio to within ``half_width``, a share of it, to either side."""
    if len(rounds) < _LEAST_ROUNDS:
        return False
    ratio = latency_ratio(_samples(rounds, batch_size=1))
    assert ratio.low is not None
    assert ratio.high is not None
    return max(ratio.high - ratio.value, ratio.value - ratio.low) <= half_width * ratio.value


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


def _measure_round(
    candidate: Contender, reference: Contender, time_pass: TimePass, *, passes: int, candidate_first: bool
) -> _Round:
    start, waited_before = time.perf_counter(), waited_ms()
    if candidate_first:
        candidate_ms = _time_block(candidate, passes, time_pass)
        reference_ms = _time_block(reference, REFERENCE_PER_ROUND, time_pass)
    else:
        reference_ms = _time_block(reference, REFERENCE_PER_ROUND, time_pass)
        candidate_ms = _time_block(candidate, passes, time_pass)
    return _Round(
        candidate_ms=candidate_ms,
        reference_ms=reference_ms,
        waited_ms=waited_ms() - waited_before,
        elapsed_ms=(time.perf_counter() - start) * 1e3,
    )


def _quiet(rounds: Sequence[_Round]) -> list[_Round]:
    """Return the undisturbed rounds."""
    return [timed for timed in rounds if timed.waited_ms <= _DISTURBED * timed.elapsed_ms]


def _time_block(contender: Contender, passes: int, time_pass: TimePass) -> list[float]:
    contender.install()
    return [time_pass(contender.run) for _ in range(1 + passes)][1:]


def _warm_up(run: Callable[[], object], least_s: float, time_pass: TimePass) -> float:
    """Run until ``least_s`` seconds have passed and latencies have settled; return the median of the latest, in ms."""
    start = time.perf_counter()
    recent: list[float] = []
    while True:
        recent.append(time_pass(run))
        elapsed = time.perf_counter() - start
        patient = elapsed < _PATIENCE * least_s or len(recent) < _LEAST_WARM_UP
        settled = elapsed >= least_s and len(recent) >= 2 * _WINDOW and _settled(recent)
        if settled or not patient:
            return statistics.median(recent[-_WINDOW:])


def _settled(latencies: list[float]) -> bool:
    before = statistics.median(latencies[-2 * _WINDOW : -_WINDOW])
    after = statistics.median(latencies[-_WINDOW:])
    return abs(after / before - 1.0) < _STABLE
