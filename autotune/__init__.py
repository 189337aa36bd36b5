"""Search per-layer precision and static-versus-dynamic quantization against measured latency and memory."""

import importlib
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any

from autotune import sibling_packages

if TYPE_CHECKING:
    from os import PathLike

    from autotune.client.base import Client
    from autotune.maps.apply import NativeMap
    from autotune.serving.governed import Bundle
    from autotune.tuning.tune import tune
    from workers.task import OutputKind, Split, Task, Timed
    from workers.tasks import register
    from workers.tasks.generic import GenericTask

__all__ = [
    "GenericTask",
    "OutputKind",
    "Split",
    "Task",
    "Timed",
    "__version__",
    "connect",
    "load_bundle",
    "load_map",
    "register",
    "tune",
]

__version__ = metadata.version("quant-autotune")

sibling_packages.check()

#: Names that are imported at their first use, because most of them bring PyTorch.
_LAZY = {
    "GenericTask": "workers.tasks.generic",
    "OutputKind": "workers.task",
    "Split": "workers.measurement",
    "Task": "workers.task",
    "Timed": "workers.task",
    "register": "workers.tasks",
    "tune": "autotune.tuning.tune",
}


if not TYPE_CHECKING:  # checkers know the names from the imports above

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with warnings.catch_warnings():
            # Of tqdm in a notebook, which a library imports; our own bar needs no widgets.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__


def load_map(path: "str | PathLike[str]") -> "NativeMap":
    """Return the quantization map in the file ``path``; its ``apply(model)`` quantizes a model.

    Raises:
        NotFoundError: if there is no such file.
        MapError: if the file is not a map this version can read.
    """
    from autotune.maps.apply import read_map

    return read_map(path)


def load_bundle(folder: "str | PathLike[str]") -> "Bundle":
    """Return the bundle of maps in a folder; its ``govern(model)`` makes a model of each that shares their weights.

    Raises:
        NotFoundError: if there is no bundle, or one of its files is missing.
        MapError: if a file cannot be read.
    """
    from autotune.serving.governed import load_bundle

    return load_bundle(folder)


def connect(where: str | None = None, *, token: str | None = None) -> "Client":
    """Return a client that submits, steers and reads jobs: of the service at ``http://...``, or of a database.

    Args:
        where: URL of a service or of a database; None is the usual database.
        token: access token of the service.

    Raises:
        JobSpecError: if it is no URL of a service.
        StoreError: if the database cannot be opened.
    """
    from autotune.client.connect import connect as connect_to

    return connect_to(where, token=token)
