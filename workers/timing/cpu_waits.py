"""Time that this process spent waiting for busy processors."""

import contextlib
from pathlib import Path

_THREADS = Path("/proc/self/task")


def waited_ms() -> float:
    """Return the total milliseconds that threads of this process have been ready to run while no processor was free.

    Linux counts them per thread (``sched-stats.rst`` in the kernel's documentation). On other systems the result is 0.
    Time that a hypervisor takes away is not included.
    """
    waited_ns = 0
    for path in _THREADS.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended in the meantime
            waited_ns += int(path.read_text(encoding="ascii").split()[1])
    return waited_ns / 1e6
