"""Search per-layer precision and static-versus-dynamic quantization against measured latency and memory."""

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from autotune.native_map import NativeMap

__all__ = ["__version__", "load_map"]

__version__ = metadata.version("quant-autotune")


def load_map(path: "str | PathLike[str]") -> "NativeMap":
    """Return the quantization map in the file ``path``; its ``apply(model)`` quantizes a model.

    Raises:
        MapError: if the file is not a map this version can read.
    """
    from autotune.native_map import read_map

    return read_map(path)
