"""One latency measurement at a time per device and host, across processes, jobs and users.

Accuracy passes share the device; a latency measurement holds it exclusively, because other work would add
noise. The lock is released when the process that holds it dies. Each GPU has its own lock.

A process that waits for a device holds a second lock, the turn, until it gets the device. Otherwise a process that
releases the device and requests it again at once, as a search does constantly, would overtake those that wait.
"""

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workers.device import gpu
from workers.progress import Report, Stage, Step, silent
from workers.timing.lock_holders import holders

#: Seconds of waiting before the first report and between reports.
_PAUSE_S = 0.5


class DeviceLock:
    """The lock of one device, for one thread."""

    def __init__(self, device: str, report: Report = silent) -> None:
        """Lock ``device``; while another process holds it, ``report`` gets two steps a second from another thread."""
        #: Name of the PyTorch device.
        self.device = device
        self._report = report
        #: Seconds spent waiting for the device.
        self.waited_s = 0.0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the device together with other accuracy passes; wait for a latency measurement to end."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the device exclusively; wait until every other process on this host has released it."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        # Each process numbers the GPUs visible to it, so one number may mean different GPUs.
        name = self.device if self.device == "cpu" else f"{self.device}-{gpu.identity()}"
        path = _path(name)
        with ExitStack() as turn:
            turn.enter_context(self._flocked(_path(f"{name}-turn"), fcntl.LOCK_EX, path))
            with self._flocked(path, operation, path):
                turn.close()
                yield

    @contextmanager
    def _flocked(self, path: Path, operation: int, awaited: Path) -> Iterator[None]:
        """Hold the lock of the file at ``path``; while waiting, report who holds the lock of ``awaited``."""
        # Any user may lock, so any user may open the file; O_NOFOLLOW rejects a link planted at the path.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                with self._waiting(awaited):
                    fcntl.flock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _waiting(self, path: Path) -> Iterator[None]:
        """Report who holds the lock while the context is open, and count the time."""
        started_s, ended = time.monotonic(), threading.Event()

        def watch() -> None:
            while not ended.wait(_PAUSE_S):
                self._report(Step(stage=Stage.WAITING, detail=_who(path)))

        watcher = threading.Thread(target=watch, name="device-wait", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            self.waited_s += time.monotonic() - started_s


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"quant-autotune-{name}.lock"


def _who(path: Path) -> str:
    """Return a sentence about the processes that hold the lock of the file at ``path``."""
    found = holders(path)
    if not found:
        return "another process measures there"
    if len(found) == 1:
        return f"process {found[0]} measures there"
    return f"processes {' and '.join(map(str, found))} measure there"
