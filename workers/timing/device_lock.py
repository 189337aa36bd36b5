"""One latency measurement at a time per device and host, across processes, jobs and users.

Accuracy passes share the device; a latency measurement has it alone, or its neighbours would be its
noise. The lock dies with the process that holds it. Each GPU is a device of its own.

Whoever waits for a device holds a second lock, the turn, until it has the device: else a process that lets go and asks
again at once, as a search does all the time, would get it again before those that wait for it.
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
    """Hold ``device`` together with other accuracy passes; waits for a latency measurement to end."""
    with _locked(device, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive(device: str) -> Iterator[None]:
    """Hold ``device`` alone; waits until everything else on this host has let go of it."""
    with _locked(device, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(device: str, operation: int) -> Iterator[None]:
    # Processes number the GPUs that each may see; the same number may be another GPU.
    name = device if device == "cpu" else f"{device}-{gpu.identity()}"
    with ExitStack() as turn:
        turn.enter_context(_flocked(f"{name}-turn", fcntl.LOCK_EX))
        with _flocked(name, operation):
            turn.close()
            yield


@contextmanager
def _flocked(name: str, operation: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"quant-autotune-{name}.lock"
    # Any user may lock, so any user may open; a link planted at the path is not followed.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
