"""Which process drives a job, so that its end is noticed at once where it can be seen."""

import os
import socket
from pathlib import Path


def this_driver() -> str:
    """Return this process's identity: host, process id, start time and space of process ids."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}:{_pid_space()}"


def is_gone(driver: str) -> bool:
    """Return whether ``driver`` was a process of this host that has ended; others cannot be seen."""
    host, pid, started, space = (driver.split(":") + [""] * 4)[:4]
    if host != socket.gethostname() or space != _pid_space() or not pid.isdecimal():
        return False
    # The start time tells a process from a later one that was given the same id.
    return _start_time(int(pid)) != started


def _start_time(pid: int) -> str:
    """Return the process's start in clock ticks since boot, empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]


def _pid_space() -> str:
    """Return what only processes that see the same process ids share: the boot and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
