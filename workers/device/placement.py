"""Move a task to a device: its model, and every batch it returns."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workers.measurement import Workload
from workers.task import Batch, OutputKind, Split, Task, Timed


def moved(value: Any, device: str) -> Any:
    """Return ``value`` with every tensor in it on ``device``.

    Recurses into tuples (including named ones), lists and mappings. An object with a method ``to``, such as a batch,
    moves itself; other values stay as they are.
    """
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device) for part in value))
    return type(value)(moved(part, device) for part in value) if type(value) in (tuple, list) else value


def beside(model: nn.Module, value: Any) -> Any:
    """Return ``value`` with every tensor in it on the device of the model's parameters, if the model has any."""
    parameter = next(model.parameters(), None)
    return value if parameter is None else moved(value, str(parameter.device))


def placed(task: Task, device: str) -> Task:
    """Return ``task`` with model and batches on ``device``; for the CPU, the task itself."""
    return task if device == "cpu" else PlacedTask(task, device)


class PlacedTask:
    """A task whose model and batches are on a device; evaluation batches stay there after first use.

    Outputs return to the CPU for the accuracy, as for every task. The task itself moves tensors of its own workloads to
    the model's device, apart from ``latency_batch``.
    """

    def __init__(self, task: Task, device: str) -> None:
        self._task = task
        self._device = device
        self._evaluation = functools.cache(lambda split: moved(task.evaluation(split), device))
        self.output_kind: OutputKind = task.output_kind
        self.has_shifted: bool = getattr(task, "has_shifted", False)
        if hasattr(task, "generate"):
            self.generate: Callable[[nn.Module, Split], torch.Tensor] = task.generate
        if hasattr(task, "forward_and_generate"):
            self.forward_and_generate: Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]] = (
                task.forward_and_generate
            )

    def build_model(self) -> nn.Module:
        """See ``Task.build_model``; the model is on the device."""
        return self._task.build_model().to(self._device)

    def calibration(self) -> Sequence[Batch]:
        return [moved(batch, self._device) for batch in self._task.calibration()]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        batches: Sequence[Batch] = self._evaluation(split)
        return batches

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._task.forward(model, batch)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return self._task.accuracy(outputs, split)

    def latency_batch(self, batch_size: int) -> Batch:
        return moved(self._task.latency_batch(batch_size), self._device)

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return the task's additional workloads unchanged."""
        more = getattr(self._task, "workloads", None)
        return more(batch_size) if more else {}
