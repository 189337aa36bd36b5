"""How long this process waited for processors that others had."""

import contextlib
from pathlib import Path

_THREADS = Path("/proc/self/task")


def waited_ms() -> float:
    """Return for how many milliseconds threads of this process were ready to run so far, but no processor was free.

    Linux counts them for every thread (``sched-stats.rst`` of the kernel's documentation). Where it does not, nobody
    ever waited. What a hypervisor takes away is not seen.
    """
    waited_ns = 0
    for path in _THREADS.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            waited_ns += int(path.read_text(encoding="ascii").split()[1])
    return waited_ns / 1e6
