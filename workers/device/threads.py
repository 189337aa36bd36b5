"""Temporary changes of PyTorch's number of threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class OtherRuntime(nn.Module):
    """A model that another runtime computes, with its own threads."""


@contextmanager
def same_threads() -> Iterator[None]:
    """Set PyTorch's number of threads back when the context ends."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread, so that it sums in the same order on every machine and leaves other cores free."""
    with same_threads():
        torch.set_num_threads(1)
        yield


def timeable(model: nn.Module, run: Callable[[], object]) -> Callable[[], object]:
    """Return ``run``, a pass of ``model``, in a form fit for timing.

    After every operation PyTorch's threads spin for some milliseconds. If a task computes something in PyTorch while
    another runtime computes the model, they would compete with that runtime's threads, so PyTorch gets one thread.
    """
    if not isinstance(model, OtherRuntime):
        return run

    def alone() -> object:
        with one_thread():
            return run()

    return alone
