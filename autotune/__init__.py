"""Search per-layer precision and static-versus-dynamic quantization against measured latency and memory."""

from importlib import metadata
from typing import TYPE_CHECKING

from autotune import sibling_packages

if TYPE_CHECKING:
    from os import PathLike

    from autotune.client.base import Client
    from autotune.maps.apply import NativeMap

__all__ = ["__version__", "connect", "load_map"]

__version__ = metadata.version("quant-autotune")

sibling_packages.check()


def load_map(path: "str | PathLike[str]") -> "NativeMap":
    """Return the quantization map in the file ``path``; its ``apply(model)`` quantizes a model.

    Raises:
        NotFoundError: if there is no such file.
        MapError: if the file is not a map this version can read.
    """
    from autotune.maps.apply import read_map

    return read_map(path)


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
