"""Clocks tell how long a device worked, on a made-up GPU where there is none."""

from pathlib import Path

import pytest
import torch

from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.setup import MeasurementSettings, WorkerSetup
from workers.tasks import load_task_file
from workers.timing import clock
from workers.timing.clock import HOST_CLOCK, CudaClock, HostClock, clock_of, time_ms


class Stream:
    """A GPU that is late: what it was given is done when somebody waits for it."""

    def __init__(self) -> None:
        self.given_ms: list[float] = []
        self.done = 0

    def event(self, *, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.position = -1

    def record(self) -> None:
        self.position = len(self._stream.given_ms)

    def synchronize(self) -> None:
        self._stream.done = max(self._stream.done, self.position)

    def elapsed_time(self, end: "Event") -> float:
        assert self._stream.done >= end.position, "PyTorch raises if the device has not come there"
        return sum(self._stream.given_ms[self.position : end.position])


def test_cuda_clock_takes_the_time_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", stream.event)
    stream.given_ms.append(100.0)  # still at work when the clock starts
    assert time_ms(lambda: stream.given_ms.append(3.0), CudaClock()) == 3.0
    assert stream.done == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_clock_waits_for_a_gpu() -> None:
    cycles = 20_000_000  # some 10 ms
    time_ms(lambda: torch.cuda._sleep(cycles), CudaClock())
    assert time_ms(lambda: torch.cuda._sleep(cycles), CudaClock()) > 1.0 > time_ms(lambda: None, CudaClock())


def test_host_clock_takes_the_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([5_000_000, 7_500_000])
    monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: next(now))
    assert time_ms(lambda: None) == 2.5


def test_device_chooses_the_clock() -> None:
    assert clock_of("cpu") is HOST_CLOCK
    assert isinstance(clock_of("cuda"), CudaClock)


def test_candidates_are_timed_by_the_clock_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sevens(HostClock):
        def between_ms(self, start: int, end: int) -> float:
            return 7.0

    monkeypatch.setattr(clock, "clock_of", {"cpu": Sevens()}.__getitem__)
    load_task_file(str(Path(__file__).parents[2] / "data" / "export_tasks.py"))
    settings = MeasurementSettings(repeats=10, warmup_s=0.0, threads=1)
    evaluator = Evaluator(WorkerSetup(task="tiny-cnn", measurement=settings))
    found = evaluator.measure(Candidate(number=0, choices={}))
    assert {*found.latency[0].candidate_ms, *found.latency[0].reference_ms} == {7.0}
    assert 0.0 < found.forward_seconds < found.seconds
