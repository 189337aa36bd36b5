"""The ``Task`` protocol: what a user provides to tune a model."""

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from workers.errors import TaskError
from workers.measurement import Split as Split
from workers.measurement import Workload

#: One batch of inputs, in whatever form the task's own ``forward`` takes.
Batch = Any

#: Most batches, of the evaluation and of the calibration each, that are run to find the layers of a model.
MOST_EXAMPLES = 32


class OutputKind(enum.StrEnum):
    """Kind of the model's outputs, which determines how divergence from full precision is computed."""

    #: Vectors compared by angle: divergence is 1 - cos.
    EMBEDDING = "embedding"
    #: Unnormalised log-probabilities: divergence is the Kullback-Leibler divergence in nats.
    LOGITS = "logits"


@runtime_checkable
class Task(Protocol):
    """A model with the data to calibrate, evaluate and time it.

    Every method is deterministic: two workers that build the same task hold the same model and data.
    """

    #: How outputs are compared with full precision.
    output_kind: OutputKind

    def build_model(self) -> nn.Module:
        """Return the full-precision model in evaluation mode, on the CPU."""
        ...

    def calibration(self) -> Sequence[Batch]:
        """Return the batches that determine static activation ranges; they are never used for evaluation."""
        ...

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return the batches the accuracy of ``split`` is computed on; held-out data may be missing."""
        ...

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the outputs of ``model`` on ``batch``, shape ``(samples, ...)``; both are on one device."""
        ...

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the metric (higher is better) of the outputs of all batches of ``split``, in order.

        If the task has a method ``generate(model, split)``, ``outputs`` is what that method returned. If it also has
        ``forward_and_generate(model, batch)``, that returns the outputs and the part of ``generate`` for one batch.
        """
        ...

    def latency_batch(self, batch_size: int) -> Batch:
        """Return a real input of ``batch_size`` samples, as production would send it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How to run a workload for timing."""

    #: Prepares a model, untimed. Its result is passed to every run of that model and lies on the model's device.
    prepare: Callable[[nn.Module], Any]
    #: The timed part.
    run: Callable[[nn.Module, Any], object]


def workloads(task: Task, batch_size: int) -> dict[Workload, Timed]:
    """Return the workloads of a task: the forward pass, and those its method ``workloads`` adds, if it has one."""
    batch = task.latency_batch(batch_size)
    forward = Timed(prepare=lambda model: batch, run=task.forward)
    more: Callable[[int], Mapping[Workload, Timed]] | None = getattr(task, "workloads", None)
    return {Workload.FORWARD: forward, **(more(batch_size) if more else {})}


def in_evaluation_mode(model: object) -> nn.Module:
    """Return the model that a task built, in evaluation mode.

    Raises:
        TaskError: if it is no module, or an exported program, which has no layers that could be replaced.
    """
    exported = type(model).__name__ == "ExportedProgram"
    if not isinstance(model, nn.Module) and not exported:
        raise TaskError(f"a task must build an nn.Module, but this one built a {type(model).__name__}")
    try:
        if isinstance(model, nn.Module):
            return model.eval()
    except NotImplementedError:  # what a module of torch.export raises
        pass
    raise TaskError(
        "the task builds an exported program (torch.export), which has no layers that could be replaced; build the "
        "nn.Module that it was exported from"
    )


def example_batches(task: Task) -> list[Batch]:
    """Return the batches on which a model's layers are found: of the evaluation first, then of the calibration.

    A layer that none of them reaches counts as idle. At most ``MOST_EXAMPLES`` of each are looked at.

    Raises:
        TaskError: if there is no evaluation data.
    """
    evaluation = list(task.evaluation(Split.EVALUATION)[:MOST_EXAMPLES])
    if not evaluation:
        raise TaskError(
            "the task has no evaluation data: its method evaluation returned no batches for Split.EVALUATION; at least "
            "one is needed"
        )
    return evaluation + list(task.calibration()[:MOST_EXAMPLES])


def passes_over(task: Task, batches: Sequence[Batch]) -> list[Callable[[nn.Module], torch.Tensor]]:
    """Return one function per batch that runs a model on it."""
    return [functools.partial(_forward, task, batch) for batch in batches]


def _forward(task: Task, batch: Batch, model: nn.Module) -> torch.Tensor:
    return task.forward(model, batch)  # by position, because tasks may give the arguments other names


def splits_with_data(task: Task) -> tuple[Split, ...]:
    """Return the splits of a task without held-out data if its method ``evaluation`` has none, or raises an error."""
    try:
        has_held_out = len(task.evaluation(Split.HELD_OUT)) > 0
    except Exception:  # the task's code may raise anything
        has_held_out = False
    return tuple(split for split in splits(task) if has_held_out or split is not Split.HELD_OUT)


def splits(task: Task) -> tuple[Split, ...]:
    """Return the splits of a task; the shifted one is included only if its attribute ``has_shifted`` is true."""
    return tuple(Split) if getattr(task, "has_shifted", False) else (Split.EVALUATION, Split.HELD_OUT)
