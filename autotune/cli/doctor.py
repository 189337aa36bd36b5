"""Checks whether this machine can tune models."""

import functools
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.store.open import open_store
from search_spaces.errors import AutotuneError
from workers.tasks import build_task, task_names

if TYPE_CHECKING:
    from workers.backends.cpu.speed import Speed

#: Free bytes below which a database is likely to run out of space during a job.
_LEAST_FREE = 500 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    #: The result and, if it is a problem, how to fix it.
    text: str


def examine(database: str) -> list[Finding]:
    """Return the findings about PyTorch, kernels, Ray, tasks, the database and the machine."""
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: platform.python_version(),
        "pytorch": _pytorch,
        "processor": _processor,
        "kernels": _kernels,
        "ray": _ray,
        "machine": _machine,
        "disk": _disk,
        "database": lambda: _database(database),
    }
    findings = [_find(name, check) for name, check in checks.items()]
    return findings + [_find(f"task {name}", functools.partial(_task, name)) for name in task_names()]


def choice_speeds() -> "list[Speed]":
    """Time each choice on this processor, relative to full precision; takes about a second."""
    from workers.backends.cpu.speed import speeds

    return speeds()


def _find(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, text=check())
    except (AutotuneError, ImportError, OSError) as error:
        return Finding(name=name, ok=False, text=str(error))


def _pytorch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device"
    return f"{torch.__version__}, {cuda}"


def _processor() -> str:
    from workers.device.processor import this_processor

    here = this_processor()
    return f"{here.kind}; int8 products use {here.int8_weight_bits}-bit weights"


def _kernels() -> str:
    from workers.backends import BACKENDS, build_backend

    best = build_backend("auto")
    others = [name for name in BACKENDS if name != best.name and BACKENDS[name]().unavailable() is None]
    also = f"; also {', '.join(others)}" if others else ""
    return f"backend {best.name} on {best.hardware()}{also}"


def _ray() -> str:
    import importlib.metadata

    return importlib.metadata.version("ray")


def _machine() -> str:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    busy = "; other processes are running, so latencies will be noisy" if load > cores / 2 else ""
    return f"{cores} cores, load {load:.1f}{busy}"


def _disk() -> str:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _LEAST_FREE:
        raise OSError(
            f"{free >> 20} MiB free in {tempfile.gettempdir()}; free some space, or set TMPDIR to another disk"
        )
    return f"{free >> 30} GiB free in {tempfile.gettempdir()}"


def _database(url: str) -> str:
    store = open_store(url)
    try:
        return f"{len(store.jobs())} jobs recorded"
    finally:
        store.close()


def _task(name: str) -> str:
    task = build_task(name, {})
    return f"ready ({task.output_kind})"
