"""Peak memory of a process with all its descendants."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import psutil

#: Seconds between two samples.
_INTERVAL_S = 0.05


class MemoryWatch:
    """Samples the resident memory of a process tree while its context lasts; pages that processes share count twice."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        #: Largest resident bytes of the tree so far.
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, self._tree())))
            if self._ended.wait(_INTERVAL_S):
                return

    def _tree(self) -> Sequence[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def resident_bytes(process: psutil.Process) -> int:
    """Return the resident bytes of a process; 0 once it has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
