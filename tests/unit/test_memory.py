"""Memory given back to the system."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workers import memory


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    memory._trim.cache_clear()
    yield
    memory._trim.cache_clear()


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_what_lies_between_needed_tensors_is_given_back() -> None:
    pieces = [torch.ones(25_000) for _ in range(1000)]  # 100 kB each, too small for maps of their own
    kept = pieces[::10]
    pieces.clear()
    before = anonymous_bytes()
    memory.release()
    assert before - anonymous_bytes() > 60_000_000
    assert all(bool((piece == 1.0).all()) for piece in kept)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.release()
