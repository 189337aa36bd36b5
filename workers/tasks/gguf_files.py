"""Faster reading of GGUF files: transformers parses their metadata anew for configuration and weights."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Parse each GGUF file once in this context, if the package ``gguf`` is installed.

    The metadata of a vocabulary of 262,144 tokens are two million slices, which take most of the time to load a small
    model. Slices of a plain array take a fraction of those of a memory map, which is what the package slices.
    """
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError:
        yield
        return
    original = gguf.GGUFReader

    class PlainReader(original):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> np.ndarray[Any, Any]:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap[Any, Any]) -> None:
            self._plain = np.asarray(mapped)

    gguf.GGUFReader = functools.lru_cache(maxsize=1)(PlainReader)
    try:
        yield
    finally:
        gguf.GGUFReader = original
