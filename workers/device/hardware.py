"""Kind of this machine's hardware; measurements from different kinds are not comparable."""

import os

from workers.device import gpu
from workers.device.processor import this_processor

#: Environment variable that overrides the kind, to distinguish machines that look alike.
KIND = "AUTOTUNE_HARDWARE_KIND"


def kind_of(device: str) -> str:
    """Return the kind of the backend's ``device``, in one line.

    For ``cpu`` it is the processor's model and features, otherwise the GPU's model.
    """
    return _named() or (this_processor().kind if device == "cpu" else gpu.model())


def kinds_here() -> tuple[str, ...]:
    """Return every kind that a process on this machine can measure: the processor's and that of each visible GPU."""
    named = _named()
    return (named,) if named else (this_processor().kind, *gpu.models())


def _named() -> str:
    return " ".join(os.environ.get(KIND, "").split())
