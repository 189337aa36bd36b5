"""Which kind of hardware this is: measurements of two kinds do not compare."""

import os

from workers.device import gpu
from workers.device.processor import this_processor

#: Environment variable that names the kind of everything here. It tells machines apart that look alike.
KIND = "AUTOTUNE_HARDWARE_KIND"


def kind_of(device: str) -> str:
    """Return the kind of the backend's ``device``, in one line.

    On ``cpu`` it is the processor's model and features, else the model of the GPU.
    """
    return _named() or (this_processor().kind if device == "cpu" else gpu.model())


def kinds_here() -> tuple[str, ...]:
    """Return every kind that a process here can measure on: the processor's, and that of each visible GPU."""
    named = _named()
    return (named,) if named else (this_processor().kind, *gpu.models())


def _named() -> str:
    return " ".join(os.environ.get(KIND, "").split())
