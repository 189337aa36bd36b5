"""Clocks: how the time of a model's work is taken on the device that does it."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks moments between pieces of work, and tells how far they are apart."""

    def mark(self) -> Any:
        """Return this moment: after all work that was given to the device so far, before any other."""
        ...

    def between_ms(self, start: Any, end: Any) -> float:
        """Return the milliseconds from one moment to a later one; waits until the device has come there."""
        ...


class HostClock:
    """The processor's own clock, for work that is done when its call returns."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def between_ms(self, start: int, end: int) -> float:
        return (end - start) / 1e6


class CudaClock:
    """Events in the current CUDA stream.

    A call returns before the GPU has done its work, and waiting for that on the host adds what it takes to be woken
    up. Events are stamped by the GPU itself, half a microsecond fine.
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
    """Return the milliseconds that ``run`` takes, having waited for its end."""
    start = clock.mark()
    run()
    return clock.between_ms(start, clock.mark())
