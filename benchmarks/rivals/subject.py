"""What all rivals get: one model with its data, its metric and its limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autotune.jobs.spec import JobSpec
from workers import quality
from workers.backends.onnx.graph import serialized, trace
from workers.backends.onnx.placeholders import Flat
from workers.backends.onnx.signature import Signature, signature, task_batches
from workers.measurement import Split
from workers.model.full_precision import full_precision_model
from workers.task import Batch, Task
from workers.tasks import build_task, load_task_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that rivals quantize, in full precision on the CPU."""

    spec: JobSpec
    task: Task
    model: nn.Module
    #: How the task calls the model.
    calls: Signature
    #: The model with tensors as positional arguments and results.
    flat: Flat

    @property
    def most_drop(self) -> float:
        """The largest loss of accuracy that the job allows, relative to full precision's."""
        return most_drop(self.spec)

    @property
    def batch_size(self) -> int:
        """Samples of the pass that is timed."""
        return self.spec.measurement.batch_sizes[0]

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, in the order of the tensors."""
        return [f"input_{key}" if isinstance(key, int) else key for key in self.calls.varying]

    @property
    def dynamic_shapes(self) -> tuple[tuple[dict[int, object], ...]]:
        """Dimensions that vary between calls of ``flat``, as ``torch.export`` takes them."""
        return (tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in self.calls.varying.values()),)

    def calibration(self) -> list[tuple[torch.Tensor, ...]]:
        """Return the tensors of every call on the calibration data."""
        return self._tensors(self.task.calibration())

    def evaluation(self) -> list[tuple[torch.Tensor, ...]]:
        """Return the tensors of every call on the evaluation data."""
        return self._tensors(self.task.evaluation(Split.EVALUATION))

    def _tensors(self, batches: Sequence[Batch]) -> list[tuple[torch.Tensor, ...]]:
        return [signature(self.task, self.model, [batch]).tensors for batch in batches]

    def fresh_model(self) -> nn.Module:
        """Return another copy of the full-precision model."""
        return full_precision_model(self.task)

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy of a model in this one's place, on the evaluation data; higher is better."""
        judged = quality.judged(self.task, model, Split.EVALUATION)
        return quality.number(self.task.accuracy(judged, Split.EVALUATION))

    def onnx(self) -> bytes:
        """Return the full-precision model as an ONNX graph, traced as our own backend traces it."""
        return serialized(trace(self.task, self.model, (), self.spec.measurement.batch_sizes).graph)


def load_subject(job_file: Path, task_file: str | None = None) -> Subject:
    """Return the subject of a job file.

    Raises:
        AutotuneError: if the job file is invalid, or its task cannot be built.
    """
    if task_file is not None:
        load_task_file(task_file)
    spec = JobSpec.load(job_file)
    task = build_task(spec.task.name, spec.task.parameters)
    model = full_precision_model(task)
    calls = signature(task, model, task_batches(task, spec.measurement.batch_sizes))
    return Subject(spec=spec, task=task, model=model, calls=calls, flat=Flat(model, calls).eval())


def most_drop(spec: JobSpec) -> float:
    """Return the largest loss of accuracy that a job allows, relative to full precision's."""
    (limit,) = (each for each in spec.constraints.constraints() if each.metric == "accuracy_drop")
    return limit.limit
