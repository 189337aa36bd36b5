import functools
import gc
import itertools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workers.timing import device_lock, latency
from workers.timing.device_lock import DeviceLock
from workers.timing.estimates import REFERENCE_PER_ROUND
from workers.timing.latency import CANDIDATE_PER_ROUND, Contender, measure


class Log:
    """Records which model ran, and fakes the time each pass takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs_ms: dict[str, float]) -> None:
        self.installed = ""
        self.passes: list[str] = []
        self.costs_ms = costs_ms
        self.now_ns = 0
        self.waited_ms = 0.0
        monkeypatch.setattr(latency, "waited_ms", lambda: self.waited_ms)
        monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_ns / 1e9)

    def contender(self, name: str) -> Contender:
        return Contender(install=lambda: setattr(self, "installed", name), run=self.run)

    def contenders(self, run: Callable[[], object]) -> list[Contender]:
        """Return candidate and reference, which both run the same."""
        return [
            Contender(install=functools.partial(setattr, self, "installed", name), run=run)
            for name in ("candidate", "reference")
        ]

    def run(self) -> None:
        self.passes.append(self.installed)
        self.now_ns += int(self.costs_ms[self.installed] * 1e6)


def noisy(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Return candidate and reference, whose passes vary too much for a narrow interval."""
    generator = np.random.default_rng(0)
    log = Log(monkeypatch, {})

    def run() -> None:
        log.costs_ms = dict.fromkeys(("candidate", "reference"), generator.lognormal(0.0, 0.5))
        log.run()

    return log.contenders(run)


def test_rounds_alternate_and_first_pass_after_a_change_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, {"candidate": 2.0, "reference": 8.0})
    samples = measure(log.contender("candidate"), log.contender("reference"), batch_size=3, repeats=25, warmup_s=0.0)
    rounds = 3
    assert samples.batch_size == 3
    assert samples.candidate_ms.tolist() == [2.0] * rounds * CANDIDATE_PER_ROUND
    assert samples.reference_ms.tolist() == [8.0] * rounds * REFERENCE_PER_ROUND
    warm_up = len(log.passes) - rounds * (CANDIDATE_PER_ROUND + REFERENCE_PER_ROUND + 2)
    blocks = [(name, len(list(group))) for name, group in itertools.groupby(log.passes[warm_up:])]
    one, other = 1 + CANDIDATE_PER_ROUND, 1 + REFERENCE_PER_ROUND
    # A B, B A, A B: neighbouring blocks of one model merge.
    assert blocks == [("reference", other), ("candidate", 2 * one), ("reference", 2 * other), ("candidate", one)]
    assert log.installed == "candidate"


def test_warm_up_lasts_until_latencies_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, {"candidate": 10.0, "reference": 10.0})
    cold = iter([100.0, 60.0, 40.0, 30.0, 20.0] * 2)

    def run() -> None:
        log.costs_ms["candidate"] = next(cold, 10.0)
        log.run()

    candidate = Contender(install=lambda: setattr(log, "installed", "candidate"), run=run)
    samples = measure(candidate, log.contender("reference"), batch_size=1, repeats=20, warmup_s=0.3)
    assert samples.candidate_ms.max() == 10.0


def test_rounds_in_which_others_had_the_processor_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, {"candidate": 2.0, "reference": 8.0})
    disturbed = iter([True, True, False, True])
    round_passes = CANDIDATE_PER_ROUND + REFERENCE_PER_ROUND + 2
    warm_up = 2  # the least number of passes, with no time asked for

    def run() -> None:
        if len(log.passes) >= warm_up and (len(log.passes) - warm_up) % round_passes == 0:
            slow = 4.0 if next(disturbed, False) else 1.0
            log.costs_ms = {"candidate": 2.0 * slow, "reference": 8.0 * slow}
            log.waited_ms += 0.1 if slow == 1.0 else 30.0
        log.run()

    contenders = log.contenders(run)
    samples = measure(contenders[0], contenders[1], batch_size=1, repeats=50, warmup_s=0.0)
    assert len(samples.candidate_ms) == 50
    assert len(samples.reference_ms) == 5 * REFERENCE_PER_ROUND
    assert set(samples.reference_ms) == {8.0}
    assert set(samples.candidate_ms) == {2.0}
    assert len(log.passes) == warm_up + 8 * round_passes


def test_of_disturbed_rounds_those_with_the_least_waiting_count(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, {})
    round_passes = CANDIDATE_PER_ROUND + REFERENCE_PER_ROUND + 2
    slow = itertools.cycle([1.0, 10.0])  # the slow ones wait longer, and are less of their time at it

    def run() -> None:
        if len(log.passes) % round_passes == 2:
            factor = next(slow)
            log.costs_ms = {"candidate": 2.0 * factor, "reference": 8.0 * factor}
            log.waited_ms += 10.0 if factor == 1.0 else 40.0
        log.run()

    log.costs_ms = {"candidate": 2.0, "reference": 8.0}
    contenders = log.contenders(run)
    samples = measure(contenders[0], contenders[1], batch_size=1, repeats=50, warmup_s=0.0)
    assert set(samples.candidate_ms) == {2.0}
    assert set(samples.reference_ms) == {8.0}


def test_noise_favours_neither_model(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    log = Log(monkeypatch, {})

    def run() -> None:
        log.costs_ms = dict.fromkeys(("candidate", "reference"), generator.lognormal(0.0, 0.5))
        log.waited_ms += generator.choice([0.0, 1.0])
        log.run()

    ratios = []
    for _ in range(200):
        contenders = log.contenders(run)
        samples = measure(contenders[0], contenders[1], batch_size=1, repeats=60, warmup_s=0.0)
        ratios.append(np.log(np.median(samples.candidate_ms) / np.median(samples.reference_ms)))
    assert abs(np.mean(ratios)) < 0.04


def test_slow_passes_of_the_candidate_itself_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, {"candidate": 2.0, "reference": 8.0})
    passes = itertools.count()

    def run() -> None:
        log.costs_ms["candidate"] = 20.0 if next(passes) % 5 == 0 else 2.0
        log.run()

    candidate = Contender(install=lambda: setattr(log, "installed", "candidate"), run=run)
    samples = measure(candidate, log.contender("reference"), batch_size=1, repeats=50, warmup_s=0.0)
    assert 5 <= (samples.candidate_ms == 20.0).sum() <= 15


@pytest.mark.parametrize(("cost_ms", "passes"), [(8.0, 10), (100.0, 5), (1000.0, 3)])
def test_timing_stops_once_the_ratio_is_known_and_slow_passes_have_short_rounds(
    monkeypatch: pytest.MonkeyPatch, cost_ms: float, passes: int
) -> None:
    log = Log(monkeypatch, {"candidate": cost_ms, "reference": 8.0})
    samples = measure(
        log.contender("candidate"), log.contender("reference"),
        batch_size=1, repeats=500, warmup_s=0.0, half_width=0.01,
    )  # fmt: skip
    assert samples.candidate_ms.tolist() == [cost_ms] * 4 * passes
    assert samples.reference_ms.tolist() == [8.0] * 4 * REFERENCE_PER_ROUND
    assert not samples.gave_up


def test_timing_of_a_noisy_ratio_goes_on_to_the_most_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, reference = noisy(monkeypatch)
    samples = measure(candidate, reference, batch_size=1, repeats=60, warmup_s=0.0, half_width=0.01)
    assert len(samples.candidate_ms) == 60


@pytest.mark.parametrize(("half_width", "passes"), [(0.01, 40), (None, 60)])
def test_timing_ends_with_its_seconds_unless_all_passes_are_needed(
    monkeypatch: pytest.MonkeyPatch, half_width: float | None, passes: int
) -> None:
    candidate, reference = noisy(monkeypatch)
    samples = measure(
        candidate, reference, batch_size=1, repeats=60, warmup_s=0.0, half_width=half_width, budget_s=1e-3
    )
    assert len(samples.candidate_ms) == passes


def test_garbage_collector_rests_and_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    states = set()
    contender = Contender(install=lambda: None, run=lambda: states.add(gc.isenabled()))
    measure(contender, contender, batch_size=1, repeats=20, warmup_s=0.0)
    assert False in states
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [("exclusive", "shared", True), ("shared", "exclusive", True), ("shared", "shared", False)],
)
def test_a_latency_measurement_has_the_device_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str, second: str, waits: bool
) -> None:
    monkeypatch.setattr(device_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    marker = tmp_path / "marker"
    # One that is waited for ends by itself; another one not before this process has looked.
    seconds = 0.5 if waits else 60.0
    process = multiprocessing.get_context("fork").Process(target=_holder, args=(tmp_path, first, seconds))
    process.start()
    try:
        while not marker.exists():
            time.sleep(0.01)
        with getattr(DeviceLock("cpu"), second)():
            assert (tmp_path / "released").exists() is waits
    finally:
        (tmp_path / "go").touch()
        process.join()


def _holder(folder: Path, kind: str, seconds: float) -> None:
    with getattr(DeviceLock("cpu"), kind)():
        (folder / "marker").touch()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (folder / "go").exists():
            time.sleep(0.01)
        (folder / "released").touch()


def test_five_slow_rounds_in_a_row_settle_it_and_a_fast_one_puts_it_off() -> None:
    def rounds_needed(first: float) -> int:
        doubt = latency.Doubt(1.5)
        return next(n for n in itertools.count(1) if doubt.is_settled_by([first if n == 1 else 1.6], [1.0]))

    assert rounds_needed(1.6) == 5
    assert rounds_needed(1.5) == 11


def test_hopeful_candidates_are_rarely_given_up() -> None:
    generator = np.random.default_rng(0)
    given_up = 0
    for _ in range(1000):  # half of the rounds are above the limit, and one looks after each of 60
        doubt = latency.Doubt(1.0)
        given_up += any(doubt.is_settled_by([ratio], [1.0]) for ratio in generator.lognormal(0.0, 0.1, 60))
    assert given_up <= 60


@pytest.mark.parametrize(("hopeless", "passes"), [(0.2, 50), (0.3, 100)])
def test_a_hopeless_candidate_is_not_timed_to_the_end(
    monkeypatch: pytest.MonkeyPatch, hopeless: float, passes: int
) -> None:
    log = Log(monkeypatch, {"candidate": 2.0, "reference": 8.0})
    samples = measure(
        log.contender("candidate"), log.contender("reference"), batch_size=1, repeats=100, warmup_s=0.0,
        hopeless=hopeless,
    )  # fmt: skip
    assert len(samples.candidate_ms) == passes
    assert log.installed == "candidate"
