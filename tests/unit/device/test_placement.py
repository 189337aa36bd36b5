"""Batches and models are brought onto a device, whatever form they have."""

from collections import UserDict, namedtuple
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from workers.device.placement import PlacedTask, moved, placed
from workers.measurement import Workload
from workers.task import OutputKind, Split, Task, Timed, splits, workloads

#: Another device than the CPU that every PyTorch has; its tensors hold no data.
DEVICE = "meta"
Pair = namedtuple("Pair", ["left", "right"])


class Encoding(UserDict[str, Any]):
    """Moves by itself, as what tokenizers return does."""

    def to(self, device: str) -> "Encoding":
        return Encoding({key: value.to(device) for key, value in self.items()})


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2),
        (torch.zeros(2), [torch.ones(1), {"a": torch.zeros(1)}]),
        Pair(torch.zeros(1), (torch.zeros(1),)),
        {"ids": torch.zeros(1, dtype=torch.long), "nested": {"mask": torch.zeros(1)}},
        Encoding(ids=torch.zeros(1)),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_every_tensor_of_a_batch_is_moved_and_its_form_is_kept(batch: Any) -> None:
    there = moved(batch, DEVICE)
    assert type(there) is type(batch)
    assert {tensor.device.type for tensor in tensors(there)} == {DEVICE}
    assert len(tensors(there)) == len(tensors(batch))
    assert {tensor.device.type for tensor in tensors(batch)} == {"cpu"}


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = list(value.values()) if hasattr(value, "values") else list(value)
    return [tensor for part in parts for tensor in tensors(part)]


def test_what_is_no_tensor_stays() -> None:
    assert moved((None, "text", 3, [1.5]), DEVICE) == (None, "text", 3, [1.5])


class CpuTask:
    output_kind = OutputKind.EMBEDDING
    has_shifted = True

    def build_model(self) -> nn.Module:
        return nn.Linear(4, 2)

    def calibration(self) -> Sequence[torch.Tensor]:
        return torch.split(torch.zeros(4, 4), 2)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return (torch.full((2, 4), float(list(Split).index(split))),)

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return float(len(outputs))

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, 4)

    def workloads(self, batch_size: int) -> dict[Workload, Timed]:
        return {Workload.DECODE: Timed(prepare=lambda model: batch_size, run=lambda model, size: size)}


def test_placed_task_is_the_task_on_the_device() -> None:
    task = placed(CpuTask(), DEVICE)
    assert isinstance(task, Task)
    assert (task.output_kind, splits(task)) == (OutputKind.EMBEDDING, tuple(Split))
    model = task.build_model()
    batches = [*task.calibration(), *(b for split in Split for b in task.evaluation(split)), task.latency_batch(3)]
    assert {tensor.device.type for tensor in (*batches, *model.parameters())} == {DEVICE}
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 2, 3]
    assert task.forward(model, batches[0]).device.type == DEVICE
    assert task.evaluation(Split.EVALUATION) is task.evaluation(Split.EVALUATION), "moved once"
    timed = workloads(task, 5)
    assert timed[Workload.FORWARD].prepare(model).device.type == DEVICE
    assert timed[Workload.DECODE].prepare(model) == 5
    assert task.accuracy(torch.zeros(7, 1), Split.EVALUATION) == 7.0


@pytest.mark.parametrize("method", ["generate", "forward_and_generate"])
def test_a_placed_task_has_the_optional_methods_of_the_task(method: str) -> None:
    task = CpuTask()
    assert not hasattr(PlacedTask(task, DEVICE), method)
    setattr(task, method, lambda *given: (method, given))
    assert getattr(PlacedTask(task, DEVICE), method)("model", "data") == (method, ("model", "data"))


def test_task_on_the_cpu_is_itself() -> None:
    task = CpuTask()
    assert placed(task, "cpu") is task


def test_task_without_shifted_data_and_workloads_has_none_when_placed() -> None:
    class Plain(CpuTask):
        has_shifted = False
        workloads = None  # type: ignore[assignment]

    task = PlacedTask(Plain(), DEVICE)
    assert Split.SHIFTED not in splits(task)
    assert list(workloads(task, 1)) == [Workload.FORWARD]
