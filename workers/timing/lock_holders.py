"""Who holds the lock of a file, as far as the operating system says."""

import os
from dataclasses import dataclass
from pathlib import Path

#: Most words and characters of a command.
_WORDS, _LONGEST = 3, 60


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A process that holds a lock."""

    pid: int
    #: Its program and first arguments, without options, which may be secret; empty if they cannot be read.
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})" if self.command else str(self.pid)


def holders(path: Path) -> list[Holder]:
    """Return the other processes that hold a ``flock`` of the file at ``path``, by ascending id.

    The list is empty where the system does not say it: it is Linux that does, for processes of the same container.
    """
    try:
        status, table = path.stat(), Path("/proc/locks").read_text()
    except OSError:
        return []
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = set()
    for line in table.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; who waits has "->" after the number.
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == file and fields[4].isdecimal():
            found.add(int(fields[4]))
    return sorted(Holder(pid, command(pid)) for pid in found - {0, os.getpid()})


def command(pid: int) -> str:
    """Return the program of a process and its first arguments, such as ``autotune run job.yaml``; empty if unknown."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return ""
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        del words[0]
    until = next((index for index, word in enumerate(words) if word.startswith("-") or "@" in word), len(words))
    return " ".join(Path(word).name for word in words[: min(until, _WORDS)])[:_LONGEST]
