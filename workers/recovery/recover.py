"""Recovers a map block by block, each on the inputs that the recovered blocks before it produce."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from search_spaces.layer import Layer
from search_spaces.quantization_map import QuantizationMap
from workers import quality
from workers.errors import TaskError
from workers.model.layer_backend import LayerBackend
from workers.progress import Report, Stage, counted, silent
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.recovery.blocks import Block, blocks_of
from workers.recovery.calls import outputs_of, recorded
from workers.recovery.learned import encoded
from workers.recovery.reconstruction import Example, reconstructed
from workers.recovery.student import Student
from workers.sensitivity.parts import length_of, random_parts
from workers.task import Batch, Task

#: Name of the method in reports.
_METHOD = "blocks"
#: Samples per step of learning.
_SAMPLES = 8
#: Bytes of inputs and outputs of a block after which no further batch is taken.
_MOST_BYTES = 1 << 30


def recover(
    task: Task,
    model: nn.Module,
    layers: Sequence[Layer],
    quantization: QuantizationMap,
    backend: LayerBackend,
    settings: RecoverySettings,
    *,
    kernels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    report: Report = silent,
) -> tuple[RecoveryReport, bytes]:
    """Learn weights and biases of a map; return what was done, and the file of what was learned.

    A block keeps its weights unless the learned ones come closer to full precision on the calibration batches that
    validate, and so does the whole map.

    Args:
        task: the model's task; only its calibration batches are used.
        model: in full precision; it is not changed.
        layers: its quantizable layers, in execution order.
        quantization: the map, with its ranges.
        backend: prepares the layers.
        settings: how to learn.
        kernels: layer name -> choice name -> kernel, where already known.
        report: gets every block.

    Raises:
        TaskError: if the task has too few calibration samples.
    """
    start = time.monotonic()
    batches = _Batches.of(task, model, settings)
    student = Student(model, layers, quantization, backend, kernels)
    before = _divergence(task, model, student.model, batches.validating)
    names, kept, samples = [layer.name for layer in layers], dict[str, str](), 0
    blocks = blocks_of(model, names, lambda: task.forward(model, batches.validating[0]))
    for block in counted([each for each in blocks if student.learnable(each.layers)], Stage.RECOVERING, report):
        if settings.time_limit_s is not None and time.monotonic() - start > settings.time_limit_s:
            kept[block.name] = "the time limit was reached"
            continue
        try:
            samples = max(samples, _recover_block(task, model, student, block, batches, settings))
        except _KeptError as error:
            kept[block.name] = str(error)
    learned = student.learned
    after = _divergence(task, model, student.model, batches.validating) if learned else before
    if learned and not after < before:  # nan counts as worse
        why = f"on the validation batches its divergence is {after:.3g} with learned weights, {before:.3g} without"
        learned, after, kept = {}, before, {**kept, "": why}
    data = encoded({name: learned[name] for name in names if name in learned}) if learned else b""
    return RecoveryReport(
        method=_METHOD,
        settings=settings,
        seconds=time.monotonic() - start,
        samples=samples,
        validation_samples=_samples(batches.validating),
        before=before,
        after=after,
        layers=tuple(name for name in names if name in learned),
        kept=kept,
        sha256=digest(data) if data else "",
        nbytes=len(data),
    ), data


class _KeptError(Exception):
    """The layers of a block keep their weights; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batches:
    """Calibration batches: those to learn from, and those that decide whether what was learned is used."""

    training: list[Batch]
    validating: list[Batch]

    @classmethod
    def of(cls, task: Task, model: nn.Module, settings: RecoverySettings) -> "_Batches":
        """Divide the calibration batches, cut into small parts where the task takes such."""
        parts = random_parts(task, model, task.calibration(), _SAMPLES, seed=settings.seed)
        if len(parts) < 2:
            raise TaskError(
                "recovery learns from some calibration data and validates on others, but the task has a single batch "
                f"of at most {_SAMPLES} samples; return more from its method calibration"
            )
        validating = max(1, round(settings.validation * len(parts)))
        return cls(training=parts[validating:], validating=parts[:validating])


def _divergence(task: Task, model: nn.Module, quantized: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean divergence of a quantized model; one batch at a time, because outputs may be large."""
    each = []
    for batch in batches:
        exact, found = (quality.outputs_on(task, of, [batch]) for of in (model, quantized))
        each.append(quality.divergence(found, exact, task.output_kind))
    return float(torch.cat(each).mean())


def _samples(batches: Sequence[Batch]) -> int:
    """Return the number of samples in batches; one that cannot be cut counts as one."""
    return sum(length_of(batch) or 1 for batch in batches)


def _recover_block(
    task: Task, model: nn.Module, student: Student, block: Block, batches: _Batches, settings: RecoverySettings
) -> int:
    """Let the layers of one block learn; return from how many samples.

    Raises:
        _KeptError: if they keep their weights.
    """
    layers = student.learnable(block.layers)
    within = {name: name.removeprefix(block.name).removeprefix(".") for name in layers}
    try:
        examples = _examples(task, model, student, block, batches.training)
        learned = reconstructed(
            model.get_submodule(block.name),
            {within[name]: layer for name, layer in layers.items()},
            examples,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        samples = sum(example.samples for example in examples)
        del examples  # before others take as much memory
        checked = _examples(task, model, student, block, batches.validating)
        before = _error(student.model.get_submodule(block.name), checked)
        student.take({name: learned[within[name]] for name in layers})
        after = _error(student.model.get_submodule(block.name), checked)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises, the other blocks can still learn
        student.drop(layers)
        raise _KeptError(f"it cannot learn: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from None
    if not after < before:  # nan counts as worse
        student.drop(layers)
        why = f"on the validation batches its error is {after:.3g} with learned weights, {before:.3g} without"
        raise _KeptError(why)
    return samples


def _examples(task: Task, model: nn.Module, student: Student, block: Block, batches: Sequence[Batch]) -> list[Example]:
    """Return the inputs of a block in the quantized model, with the outputs of full precision.

    They are of as many batches as fit into memory, at least one.

    Raises:
        ValueError: if the calls of the block depend on the numbers, as those of experts do.
    """
    examples: list[Example] = []
    with (
        closing(recorded(task, student.model, block, batches)) as quantized,
        closing(recorded(task, model, block, batches)) as full,
    ):
        for batch, calls, exacts in zip(batches, quantized, full, strict=True):
            samples = _samples([batch])
            for call, exact in zip(calls, exacts, strict=True):
                if call.output.shape != exact.output.shape:
                    raise ValueError("its inputs have other shapes in the quantized model")
                counts = _counting(batch, exact.output)
                examples.append(Example(call=replace(call, output=exact.output), counts=counts, samples=samples))
                samples = 0  # further calls of the pass have the same samples
            if sum(example.nbytes for example in examples) > _MOST_BYTES:
                break
    if not examples:
        raise ValueError("no pass over these batches calls it")
    return examples


def _counting(batch: Batch, output: torch.Tensor) -> torch.Tensor | None:
    """Return which positions of an output are not padding, by the attention mask of the batch; None if all count."""
    mask: Any = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, torch.Tensor) and output.shape[:-1] == mask.shape and not bool(mask.all()):
        return mask.bool()
    return None


def _error(module: nn.Module, examples: Sequence[Example]) -> float:
    with torch.inference_mode():
        return float(torch.stack([example.error(outputs_of(module, example.call)) for example in examples]).mean())
