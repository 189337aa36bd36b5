"""The GPU that this process uses: the first one visible to it."""

import re
from pathlib import Path

import torch

#: File in which the kernel module reports its version.
_DRIVER = Path("/proc/driver/nvidia/version")


def capability() -> tuple[int, int]:
    """Return the compute capability, for example ``(9, 0)``."""
    return torch.cuda.get_device_capability()


def model() -> str:
    """Return the GPU's model, for example ``NVIDIA H100 80GB HBM3``."""
    return torch.cuda.get_device_name()


def models() -> tuple[str, ...]:
    """Return the model of each visible GPU; empty if PyTorch sees none."""
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def hardware() -> str:
    """Return the GPU's model and compute capability, for people."""
    return f"{model()}, compute capability {'.'.join(map(str, capability()))}"


def identity() -> str:
    """Return the GPU's UUID, which identifies it whatever number each process gives it."""
    return str(torch.cuda.get_device_properties().uuid)


def versions() -> dict[str, str]:
    """Return the versions of CUDA and of the driver, as far as known."""
    driver = driver_version(_DRIVER.read_text()) if _DRIVER.exists() else None
    known = {"cuda": torch.version.cuda, "nvidia-driver": driver}
    return {name: version for name, version in known.items() if version is not None}


def driver_version(text: str) -> str | None:
    """Return the driver version from the kernel module's version text, or None if it has none."""
    found = re.search(r"Kernel Module\b.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None
