"""The GPU this process works on: the first that is visible to it."""

import re
from pathlib import Path

import torch

#: Where the kernel module tells its version.
_DRIVER = Path("/proc/driver/nvidia/version")


def capability() -> tuple[int, int]:
    """Return the compute capability, for example ``(9, 0)``."""
    return torch.cuda.get_device_capability()


def model() -> str:
    """Return its model, for example ``NVIDIA H100 80GB HBM3``."""
    return torch.cuda.get_device_name()


def models() -> tuple[str, ...]:
    """Return the model of each visible GPU; nothing where PyTorch sees none."""
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def hardware() -> str:
    """Return its model and compute capability, for people."""
    return f"{model()}, compute capability {'.'.join(map(str, capability()))}"


def identity() -> str:
    """Return what tells it from every other GPU, whatever number each process gives it."""
    return str(torch.cuda.get_device_properties().uuid)


def versions() -> dict[str, str]:
    """Return the versions of CUDA and of the driver, each where it is known."""
    driver = driver_version(_DRIVER.read_text()) if _DRIVER.exists() else None
    known = {"cuda": torch.version.cuda, "nvidia-driver": driver}
    return {name: version for name, version in known.items() if version is not None}


def driver_version(text: str) -> str | None:
    """Return the driver's version from what its kernel module says of itself, None if it says none."""
    found = re.search(r"Kernel Module\b.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None
