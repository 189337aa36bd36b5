"""The identity of the process that drives a job, so that its end can be detected at once on the same host."""

import os
import socket
from pathlib import Path


def this_driver() -> str:
    """Return the identity of this process: host, process id, start time and process id namespace."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}:{_pid_space()}"


def is_gone(driver: str) -> bool:
    """Return whether ``driver`` was a process of this host and has ended; False for other hosts and namespaces."""
    host, pid, started, space = (driver.split(":") + [""] * 4)[:4]
    if host != socket.gethostname() or space != _pid_space() or not pid.isdecimal():
        return False
    # The start time distinguishes a process from a later one with the same id.
    return _start_time(int(pid)) != started


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]


def _pid_space() -> str:
    """Return an id of the process id namespace: part of the boot id, and the inode of the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
