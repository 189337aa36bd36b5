"""Which process drives a job, so that two never drive it at once on one machine."""

import os
import socket
from pathlib import Path


def this_driver() -> str:
    """Return this process's identity: host, process id and start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"


def is_alive(driver: str) -> bool:
    """Return whether ``driver`` is another live process of this host; other hosts cannot be seen."""
    host, _, rest = driver.partition(":")
    pid, _, started = rest.partition(":")
    if driver == this_driver() or host != socket.gethostname():
        return False
    # The start time tells a process from a later one that was given the same id.
    return started != "" and _start_time(int(pid)) == started


def _start_time(pid: int) -> str:
    """Return the process's start in clock ticks since boot, empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
