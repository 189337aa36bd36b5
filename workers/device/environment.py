"""The environment of a measurement: processor, threads, load, versions."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata

import torch

from workers.device import gpu
from workers.device.hardware import kind_of
from workers.device.processor import this_processor
from workers.measurement import Environment


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_hardware() -> str:
    """Return the processor's kind and the number of cores available to this process."""
    return f"{this_processor().kind}, {usable_cores()} cores"


def capture(*, hardware: str, backend: str, device: str, libraries: Sequence[str] = ()) -> Environment:
    """Return the current environment; ``libraries`` are the distributions that the backend uses."""
    return Environment(
        hardware=hardware,
        kind=kind_of(device),
        backend=backend,
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: metadata.version(name) for name in ("quant-autotune", *libraries)},
            **({} if device == "cpu" else gpu.versions()),
            **_revision(),
        },
    )


def _revision() -> dict[str, str]:
    """Return the git revision that this distribution was installed from, as recorded by pip (PEP 610), if any."""
    text = metadata.distribution("quant-autotune").read_text("direct_url.json")
    commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return {"git": commit} if commit else {}
