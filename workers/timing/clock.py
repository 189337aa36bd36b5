"""Clocks that time a model's work on the device that performs it."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks moments between pieces of work, and measures the time between them."""

    def mark(self) -> Any:
        """Return a mark after all work submitted to the device so far and before any later work."""
        ...

    def between_ms(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two marks; waits until the device has reached the second."""
        ...


class HostClock:
    """The host's clock, for work that is finished when its call returns."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def between_ms(self, start: int, end: int) -> float:
        return (end - start) / 1e6


class CudaClock:
    """Events in the current CUDA stream.

    A call returns before the GPU has finished its work, and waiting on the host would add the wake-up latency. The GPU
    itself stamps events, with a resolution of about half a microsecond.
    """

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end))


HOST_CLOCK = HostClock()


def clock_of(device: str) -> Clock:
    """Return the clock of a PyTorch device."""
    return HOST_CLOCK if device == "cpu" else CudaClock()


def time_ms(run: Callable[[], object], clock: Clock = HOST_CLOCK) -> float:
    """Return the milliseconds that ``run`` takes, including the work it submits to the device."""
    start = clock.mark()
    run()
    return clock.between_ms(start, clock.mark())
