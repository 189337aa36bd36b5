"""One latency measurement at a time per device and host, across processes, jobs and users.

Accuracy passes share the device; a latency measurement holds it exclusively, because other work would add
noise. The lock is released when the process that holds it dies. Each GPU has its own lock.

A process that waits for a device holds a second lock, the turn, until it gets the device. Otherwise a process that
releases the device and requests it again at once, as a search does constantly, would overtake those that wait.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workers.device import gpu


@contextmanager
def shared(device: str) -> Iterator[None]:
    """Hold ``device`` together with other accuracy passes; wait for a latency measurement to end."""
    with _locked(device, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive(device: str) -> Iterator[None]:
    """Hold ``device`` exclusively; wait until every other process on this host has released it."""
    with _locked(device, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(device: str, operation: int) -> Iterator[None]:
    # Each process numbers the GPUs visible to it, so one number may mean different GPUs.
    name = device if device == "cpu" else f"{device}-{gpu.identity()}"
    with ExitStack() as turn:
        turn.enter_context(_flocked(f"{name}-turn", fcntl.LOCK_EX))
        with _flocked(name, operation):
            turn.close()
            yield


@contextmanager
def _flocked(name: str, operation: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"quant-autotune-{name}.lock"
    # Any user may lock, so any user may open the file; O_NOFOLLOW rejects a link planted at the path.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
