"""Small parts of batches, for estimates that can end after any of them and checks that need no more."""

import operator
import random
from collections.abc import Sequence

import torch
from torch import nn

from search_spaces.tensors import replaced, tensors_in
from workers.task import Batch, Task


def random_parts(task: Task, model: nn.Module, batches: Sequence[Batch], size: int, *, seed: int) -> list[Batch]:
    """Return the batches cut into parts of at most ``size`` samples each, in random order.

    If the task does not take such parts, its batches stay whole.

    Args:
        task: runs the model.
        model: the full-precision model.
        batches: any nested containers of tensors; only those whose tensors all have the same first dimension are cut.
        size: samples per part.
        seed: seed of the order.
    """
    found = [part for batch in batches for part in _cut(batch, size)]
    smaller = next((part for part in found if all(part is not batch for batch in batches)), None)
    if smaller is not None and not _runs(task, model, smaller):
        found = list(batches)
    return random.Random(seed).sample(found, len(found))


def small_part(task: Task, model: nn.Module, batch: Batch, size: int) -> Batch:
    """Return the first ``size`` samples of a batch, or all of them if the task does not take such a part."""
    part = _cut(batch, size)[0]
    return part if part is not batch and _runs(task, model, part) else batch


def length_of(batch: Batch) -> int | None:
    """Return the first dimension that all tensors of a batch have; None if they differ."""
    lengths = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_in(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def _cut(batch: Batch, size: int) -> list[Batch]:
    length = length_of(batch)
    if length is None or length <= size:
        return [batch]
    parts = [slice(start, start + size) for start in range(0, length, size)]
    return [replaced(batch, operator.itemgetter(rows)) for rows in parts]


def _runs(task: Task, model: nn.Module, part: Batch) -> bool:
    """Return whether the task returns one output per sample of ``part``."""
    try:
        with torch.inference_mode():
            outputs = task.forward(model, replaced(part, torch.clone))  # the model may change its input in place
    except Exception:  # whatever a task raises, it does not take such a part
        return False
    return len(outputs) == len(next(tensors_in(part)))
