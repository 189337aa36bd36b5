"""Working memory of a forward pass, from the allocator's own record; memory given back to the system."""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def working_bytes(run: Callable[[], object], device: str) -> int:
    """Return the largest sum of bytes alive at once that one call of ``run`` allocated.

    On a CPU the profiler's allocation events are summed up; they cover every tensor and temporary
    of PyTorch's allocator, but not scratch memory that kernel libraries allocate on their own.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def release() -> None:
    """Give the memory that tensors no longer need back to the system.

    The C library keeps it, in pieces between what is still needed, and large tensors find no room there. To others than
    glibc, nothing is said.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what native code writes to standard error from the user: the profiler announces itself there."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
