"""How many threads PyTorch has, where it must be another number than its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class OtherRuntime(nn.Module):
    """A model that another runtime computes, with threads of its own."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Give PyTorch one thread: it then sums in one order on every machine, and leaves the other cores alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def timeable(model: nn.Module, run: Callable[[], object]) -> Callable[[], object]:
    """Return ``run``, a pass of ``model``, as it may be timed.

    PyTorch's threads look for work for some milliseconds after every operation. If a task computes anything beside a
    model in another runtime, they would be in the way of that runtime's threads; so PyTorch has one thread then.
    """
    if not isinstance(model, OtherRuntime):
        return run

    def alone() -> object:
        with one_thread():
            return run()

    return alone
