"""Working memory of a pass, and memory given back to the system."""

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

from autotune.exporters import runtime
from workers.device import memory
from workers.evaluation.evaluator import Evaluator
from workers.setup import WorkerSetup


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    memory._of_libc.cache_clear()
    yield
    memory._of_libc.cache_clear()


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


class Keeps(nn.Module):
    """Keeps what each of its layers returned to the end of the pass."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        kept = [x]
        for layer in self.layers:
            kept.append(torch.relu(layer(kept[-1])))
        return kept


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_working_memory_is_summed_up_over_all_calls(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(memory, "_CALLS_AT_ONCE", at_once)
    widths = [30 + index % 5 for index in range(41)]
    model, x = Keeps(widths), torch.ones(8, widths[0])
    with torch.inference_mode():
        # Before the last relu all outputs before it are alive, and what it takes.
        assert memory.working_bytes(lambda: model(x), "cpu") == 8 * 4 * (sum(widths[1:]) + widths[-1])


def test_what_the_profiler_keeps_is_dropped_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    sum_up = memory._Allocations._sum_up

    def watched(allocations: memory._Allocations) -> None:
        sum_up(allocations)
        kept.append(len(allocations._profiler.kineto_results.events()))

    monkeypatch.setattr(memory._Allocations, "_sum_up", watched)
    model = Keeps([8] * 1001)
    with torch.inference_mode():
        memory.working_bytes(lambda: model(torch.ones(1, 8)), "cpu")
    assert len(kept) == 1 + 1001 // memory._CALLS_AT_ONCE
    assert max(kept) < 2 * sum(kept) / len(kept)


def test_an_error_in_a_pass_ends_the_watch() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        memory.working_bytes(lambda: nn.Linear(3, 4)(torch.ones(2, 5)), "cpu")
    assert not modules._global_forward_pre_hooks
    assert not torch.autograd._profiler_enabled()


needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc"
)


@needs_glibc
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
    memory.keep()


PASSES = """
import resource, statistics, torch
from torch import nn
from workers.device import memory
KEEP
torch.set_num_threads(1)
model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)])
x = torch.randn(4352, 64)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode():
        model(x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The median, because the heap may still grow by a tensor in one pass, where free memory lies in fragments.
print(statistics.median(faults() for _ in range(13)))
"""


def faults_a_pass(keep: str) -> float:
    """Pages that the median pass asks the system for; in a process of its own, because what is kept stays so."""
    code = PASSES.replace("KEEP", keep)
    # Where glibc begins; from there on it moves by itself, or does not.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@needs_glibc
def test_memory_of_a_pass_is_kept_for_the_next_one() -> None:
    assert faults_a_pass("memory.keep()") < 10 < 500 < faults_a_pass("")


class KeepingError(Exception):
    """Raised where memory is said to be kept."""


def test_whatever_times_passes_keeps_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep() -> None:
        raise KeepingError

    monkeypatch.setattr(memory, "keep", keep)
    with pytest.raises(KeepingError):
        Evaluator(WorkerSetup(task="none"))
    with pytest.raises(KeepingError):
        runtime.run(Path("nowhere"), Path("nothing"), repeats=20, slowest=1.0, task_file=None)
