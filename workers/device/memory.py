"""Working memory of a forward pass, from the allocator's own record; memory given back to the system."""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.autograd.profiler import profile
from torch.nn.modules.module import register_module_forward_pre_hook

#: Calls of modules after which what the profiler recorded is summed up and dropped: it keeps 2 kB for every operation.
_CALLS_AT_ONCE = 256

#: Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: As far as glibc's own threshold moves at most: larger tensors are given back at once, whatever was freed before.
_LARGEST_KEPT_BYTES = 32 << 20
#: Bytes at the end of the heap that are kept.
_MOST_KEPT_BYTES = 1 << 30


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
    with _quiet_stderr(), _Allocations() as allocations:
        run()
    return allocations.peak_bytes


class _Allocations:
    """Sums up what the thread allocates and frees while the context is open, a few calls of modules at a time."""

    def __init__(self) -> None:
        #: Most bytes alive at once, of those allocated in the context.
        self.peak_bytes = 0
        self._live_bytes = 0
        self._calls = 0
        self._profiler: Any = None  # its methods have no types

    def __enter__(self) -> Self:
        # A hook for all modules: some take another path if they have hooks of their own.
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
    """Have the process keep the memory that tensors no longer need, for the next ones, until ``release`` is called.

    By default glibc gives tensors above a threshold back at once, and moves the threshold with what was freed before
    (mallopt(3)): of two processes that run the same passes one asks for its memory in every pass, page by page, and
    one does not. To others than glibc, nothing is said.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT_BYTES)


def release() -> None:
    """Give the memory that tensors no longer need back to the system.

    The C library keeps it, in pieces between what is still needed, and large tensors find no room there. To others than
    glibc, nothing is said.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None)


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
