"""Checks whether this machine can tune models."""

import enum
import functools
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.jobs.hardware_limits import hardware_limits
from autotune.jobs.spec import ALL_BACKENDS, SearchSection
from autotune.store.open import open_store
from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError
from workers.tasks import build_task, task_names

if TYPE_CHECKING:
    from workers.backends.cpu.speed import Speed

#: Free bytes below which a database is likely to run out of space during a job.
_LEAST_FREE = 500 << 20


class Mark(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    #: Tuning works, but with less to choose from, or with less certain figures.
    NOTE = "note"
    PROBLEM = "problem"


class _Noted(Exception):
    """A result that deserves attention but is no problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    mark: Mark
    #: The result and, if it is a problem, how to fix it.
    text: str

    @property
    def ok(self) -> bool:
        """Whether this machine can tune in spite of it."""
        return self.mark is not Mark.PROBLEM


def examine(database: str) -> list[Finding]:
    """Return the findings about PyTorch, kernels, Ray, tasks, the database and the machine."""
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: platform.python_version(),
        "pytorch": _pytorch,
        "processor": _processor,
        "kernels": _kernels,
        "choices": _choices,
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
        return Finding(name=name, mark=Mark.OK, text=check())
    except _Noted as noted:
        return Finding(name=name, mark=Mark.NOTE, text=str(noted))
    except (AutotuneError, ImportError, OSError) as error:
        return Finding(name=name, mark=Mark.PROBLEM, text=str(error))


def _pytorch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device"
    return f"{torch.__version__}, {cuda}"


def _processor() -> str:
    from workers.device.processor import this_processor

    return this_processor().kind


def _kernels() -> str:
    from workers.backends import BACKENDS, build_backend

    best = build_backend("auto")
    others = [name for name in BACKENDS if name != best.name and BACKENDS[name]().unavailable() is None]
    also = f"; also {', '.join(others)}" if others else ""
    return f"backend {best.name} on {best.hardware()}{also}"


def _choices() -> str:
    limits = machine_limits(("auto",), SearchSection().choices)
    if limits:
        raise _Noted(" ".join(limits))
    return "linear layers can take every default choice"


def machine_limits(backends: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return what this machine cannot do for the linear layers of most models on any of the backends, in sentences.

    Raises:
        BackendError: if the backend is unknown or unavailable here.
    """
    from workers.backends import build_backend
    from workers.backends.typical_layer import refusals

    quantized = [name for name in choices if name != FULL_PRECISION.name]
    if backends == (ALL_BACKENDS,):
        backends = ("auto",)
    found = [refusals(build_backend(name), quantized) for name in backends]
    first, bits = found[0]
    everywhere = {name: why for name, why in first.items() if all(name in refused for refused, _ in found)}
    return hardware_limits(everywhere, bits)


def _ray() -> str:
    import importlib.metadata

    return importlib.metadata.version("ray")


def _machine() -> str:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    text = f"{cores} core{'s' if cores > 1 else ''}, load {load:.1f}"
    if load > cores / 2:
        raise _Noted(f"{text}: other processes are running, so latencies will be noisy")
    return text


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
        count = len(store.jobs())
        return f"{count} job{'' if count == 1 else 's'} recorded"
    finally:
        store.close()


def _task(name: str) -> str:
    task = build_task(name, {})
    return f"ready ({task.output_kind})"
