"""PyTorch has one thread while a model in another runtime is timed, and its own number otherwise."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from autotune.exporters import runtime
from workers.device.threads import OtherRuntime, one_thread, timeable
from workers.evaluation.evaluator import Evaluator
from workers.progress import silent
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Batch
from workers.tasks import register
from workers.tasks.generic import GenericTask

SETTINGS = MeasurementSettings(threads=3, repeats=10, warmup_s=0.0)


class Exported(OtherRuntime):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))


@register("thread-counting")
class Counting(GenericTask):
    """Notes by which model, and with how many threads of PyTorch, each pass was run."""

    def __init__(self) -> None:
        super().__init__(build, [torch.linspace(-1.0, 1.0, 64).reshape(2, 32)] * 3)
        self.seen: set[tuple[str, int]] = set()

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        self.seen.add((type(model).__name__, torch.get_num_threads()))
        return super().forward(model, batch)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_come_back_whatever_happens() -> None:
    def fail() -> None:
        assert torch.get_num_threads() == 1
        raise ValueError("later")

    with pytest.raises(ValueError, match="later"), one_thread():
        fail()
    assert torch.get_num_threads() == 3


def test_only_another_runtime_is_timed_with_one_thread() -> None:
    assert timeable(nn.Identity(), torch.get_num_threads)() == 3
    assert timeable(Exported(), torch.get_num_threads)() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("backend", "seen"),
    [("x86", ("Sequential", 3)), ("onnxruntime", ("OnnxModule", 1)), ("openvino", ("OpenVinoModule", 1))],
)
def test_a_worker_times_with_the_threads_that_are_due(backend: str, seen: tuple[str, int]) -> None:
    evaluator = Evaluator(WorkerSetup(task="thread-counting", backend=backend, measurement=SETTINGS))
    task = cast(Counting, evaluator._task)
    for measure in (
        lambda: evaluator.latency.of({"0": "int8_static"}, final=False),
        evaluator.reference.layer_latencies,
    ):
        task.seen.clear()
        measure()
        assert task.seen == {seen}


def test_a_session_has_the_threads_that_pytorch_does_without() -> None:
    evaluator = Evaluator(WorkerSetup(task="thread-counting", backend="onnxruntime", measurement=SETTINGS))
    deployed = cast(Any, evaluator.reference.deployed)
    evaluator.latency.of({"0": "int8_dynamic"})
    assert deployed.model.session.get_session_options().intra_op_num_threads == 3


def test_a_compiled_model_has_the_threads_that_pytorch_does_without() -> None:
    # It has no more than the cores, so that one is the only number that differs from its default everywhere.
    settings = replace(SETTINGS, threads=1)
    evaluator = Evaluator(WorkerSetup(task="thread-counting", backend="openvino", measurement=settings))
    deployed = cast(Any, evaluator.reference.deployed)
    evaluator.latency.of({"0": "int8_weight_only"})
    assert deployed.model.session.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_an_export_is_timed_with_the_threads_that_are_due() -> None:
    task = Counting()
    source: Any = SimpleNamespace(
        task=task,
        file=SimpleNamespace(measurement=SETTINGS),
        reference=nn.Identity,
    )
    runtime._latency(source, Exported(), repeats=10, slowest=math.inf, report=silent)
    assert task.seen == {("Exported", 1), ("Identity", 3)}
