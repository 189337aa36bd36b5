"""Working memory of a forward pass, from the allocator's own records; and returning unused memory to the system."""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.autograd.profiler import profile
from torch.nn.modules.module import register_module_forward_pre_hook

#: Module calls after which the profiler's events are summed up and dropped; it keeps 2 kB per operation.
_CALLS_AT_ONCE = 256

#: Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Maximum of glibc's own dynamic threshold: larger tensors are always returned to the system at once.
_LARGEST_KEPT_BYTES = 32 << 20
#: Unused bytes to keep at the end of the heap.
_MOST_KEPT_BYTES = 1 << 30


def working_bytes(run: Callable[[], object], device: str) -> int:
    """Return the peak of live bytes that one call of ``run`` allocates.

    On a CPU this sums up the profiler's allocation events, which cover every tensor and temporary
    of PyTorch's allocator, but not scratch memory that kernel libraries allocate themselves.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet_stderr(), _Allocations() as allocations:
        run()
    return allocations.peak_bytes


class _Allocations:
    """Sums up the thread's allocations while the context is open, a few module calls at a time."""

    def __init__(self) -> None:
        #: Peak of live bytes allocated in the context.
        self.peak_bytes = 0
        self._live_bytes = 0
        self._calls = 0
        self._profiler: Any = None  # its methods have no types

    def __enter__(self) -> Self:
        # A global hook, because some modules take another path if they have hooks of their own.
        self._hook = register_module_forward_pre_hook(self._called)
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()
        self._sum_up()

    def _called(self, module: object, inputs: object) -> None:
        self._calls += 1
        if self._calls % _CALLS_AT_ONCE == 0:
            self._sum_up()
            self._start()

    def _start(self) -> None:
        self._profiler = profile(use_kineto=True, profile_memory=True)
        self._profiler.__enter__()

    def _sum_up(self) -> None:
        self._profiler.__exit__(None, None, None)
        for event in self._profiler.kineto_results.events():
            if event.name() == "[memory]":
                self._live_bytes += event.nbytes()
                self.peak_bytes = max(self.peak_bytes, self._live_bytes)


def keep() -> None:
    """Make the process keep the memory of freed tensors for later ones, until ``release`` is called.

    By default glibc returns tensors above a threshold to the system at once, and adapts the threshold to earlier frees
    (mallopt(3)). Of two processes that run the same passes, one may then request its memory anew in every pass, page by
    page, and the other not. Does nothing with other C libraries than glibc.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT_BYTES)


def release() -> None:
    """Return the memory of freed tensors to the system.

    The C library keeps it as fragments between live allocations, where large tensors do not fit. Does nothing with
    other C libraries than glibc.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error, because the profiler announces itself there."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
