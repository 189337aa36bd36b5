"""Standard output is for what a command was asked for; whatever tasks and libraries print goes to standard error."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Send all prints to standard error while the context is open: of Python, of C code and of child processes."""
    sys.stdout.flush()
    with contextlib.redirect_stdout(sys.stderr), _descriptor_on_stderr():
        yield


@contextlib.contextmanager
def _descriptor_on_stderr() -> Iterator[None]:
    """Make descriptor 1 a copy of descriptor 2 while the context is open."""
    try:
        before = os.dup(1)
    except OSError:  # closed: nothing can be mixed with data
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        # What C code printed lies in its buffer, which is otherwise written after descriptor 1 is restored.
        ctypes.CDLL(None).fflush(None)
        os.dup2(before, 1)
        os.close(before)
