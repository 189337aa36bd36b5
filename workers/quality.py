"""A model's outputs on a task's data, and their divergence from full precision."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workers.errors import TaskError
from workers.progress import Report, Stage, Step, counted, silent
from workers.task import Batch, OutputKind, Split, Task

#: Bytes of outputs compared at once; float64 copies and intermediate results take about twenty times as much.
_BYTES_AT_ONCE = 1 << 20
#: Least classes for which the divergence is not computed in float64, which would take most of the time of a trial.
_LARGE = 1 << 10
#: Largest spread of a row of logits, and of their differences, for which no exponential under- or overflows fp32.
_SPREAD, _APART = 80.0, 40.0


def outputs(task: Task, model: nn.Module, split: Split, report: Report = silent) -> torch.Tensor:
    """Return the model's outputs on every batch of ``split``, in order; shape ``(samples, ...)``, fp32, CPU.

    Raises:
        TaskError: if the split has no samples, or ``outputs_on`` refuses the outputs.
    """
    batches = task.evaluation(split)
    return _of_samples(outputs_on(task, model, batches, report), split, batches)


def outputs_on(task: Task, model: nn.Module, batches: Sequence[Batch], report: Report = silent) -> torch.Tensor:
    """Return the model's outputs on ``batches``, in order; shape ``(samples, ...)``, fp32, CPU.

    Raises:
        TaskError: if the outputs of a batch are no tensor of shape ``(samples, ..., features)``, or batches yield
            outputs of several shapes.
    """
    # By position, because tasks may give the arguments other names.
    return _joined(_parts(lambda batch: task.forward(model, batch), batches, report), len(batches))


def outputs_and_judged(
    task: Task, model: nn.Module, split: Split, report: Report = silent
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's outputs on every batch of ``split``, and what the task's accuracy takes of them.

    The first are those of ``outputs``, the second those of ``judged``. A task with the method ``forward_and_generate``
    computes both batch by batch, others one after the other.

    Raises:
        TaskError: if the split has no samples, or the task returns anything else than outputs and answers.
    """
    found, answers = _gathered(task, model, split, _joined, report)
    return found, found if answers is None else answers


def divergence_and_judged(
    task: Task, model: nn.Module, split: Split, reference: torch.Tensor, report: Report = silent
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sample's divergence from ``reference``, and what the task's accuracy takes.

    The outputs of a batch are dropped before the next one, unless the accuracy takes them.

    Args:
        task: runs the model.
        model: the candidate.
        split: the data.
        reference: outputs of full precision on all of them.
        report: gets every batch.

    Raises:
        TaskError: as ``outputs_and_judged``.
    """
    if _attribute(task, "generate") is None and _attribute(task, "forward_and_generate") is None:
        found = outputs(task, model, split, report)
        return divergence(found, reference, task.output_kind), found

    def compared(parts: Iterable[torch.Tensor], _: int) -> torch.Tensor:
        rows, found = 0, list[torch.Tensor]()
        for part in parts:
            found.append(divergence(part, reference[rows : rows + len(part)], task.output_kind))
            rows += len(part)
            del part  # before the next one is made
        return torch.cat(found) if found else torch.empty(0)

    diverged, answers = _gathered(task, model, split, compared, report)
    assert answers is not None
    return diverged, answers


def _gathered(
    task: Task,
    model: nn.Module,
    split: Split,
    gather: Callable[[Iterable[torch.Tensor], int], torch.Tensor],
    report: Report,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what ``gather`` makes of the outputs of all batches and their number, and the task's answers, if any."""
    both = _attribute(task, "forward_and_generate")
    batches, answers = task.evaluation(split), list[torch.Tensor]()

    def run(batch: Batch) -> object:
        if both is None:
            return task.forward(model, batch)
        forwarded, generated = _pair(both(model, batch))
        answers.append(generated.cpu())
        return forwarded

    found = _of_samples(gather(_parts(run, batches, report), len(batches)), split, batches)
    if both is None:
        return found, _generated(task, model, split, report)
    shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in answers))
    if len(shapes) > 1:
        raise TaskError(
            "a task's answers must have one shape (samples, ...) in all batches, but each sample's had "
            f"{shapes[0]} and then {shapes[1]}; pad them in forward_and_generate"
        )
    return found, torch.cat(answers)


def _attribute(task: Task, name: str) -> Callable[..., Any] | None:
    """Return an optional method of a task; None if it has none."""
    found: Callable[..., Any] | None = getattr(task, name, None)
    return found


def _parts(run: Callable[[Batch], object], batches: Sequence[Batch], report: Report) -> Iterator[torch.Tensor]:
    """Yield the outputs of ``run`` on every batch."""
    shape = None
    for batch in counted(batches, Stage.ACCURACY, report):
        with torch.inference_mode():
            part = _checked(run(batch)).float().cpu()
        shape = shape or part.shape
        if part.shape[1:] != shape[1:]:
            raise TaskError(
                "a task's outputs must have one shape (samples, ...) in all batches, but got "
                f"{tuple(shape)} and then {tuple(part.shape)}; pad or pool them in forward"
            )
        yield part
        del part  # before the next one is made


def _joined(parts: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Return the outputs of ``count`` batches as one tensor."""
    whole, rows = torch.empty(0), 0
    with torch.inference_mode():
        for index, part in enumerate(parts):
            if index == 0 or rows + len(part) > len(whole):
                # Allocate room for the remaining batches, assuming their size: logits of all batches are too large to
                # hold both as parts and joined. Pages that are never written take no memory.
                room = part.new_empty((len(part) * (count - index), *part.shape[1:]))
                whole = torch.cat([whole[:rows], room]) if rows else room
            whole[rows : rows + len(part)] = part
            rows += len(part)
            del part
    return whole[:rows]


def _of_samples(found: torch.Tensor, split: Split, batches: Sequence[Batch]) -> torch.Tensor:
    """Return the outputs of a split if there are any."""
    if not len(found):
        raise TaskError(
            f"the task has no {split.value} data: its method evaluation returned {len(batches)} batches without a "
            f"sample for Split.{split.name}"
        )
    return found


def _pair(returned: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``forward_and_generate`` returned if it is outputs and answers, one row of each per sample."""
    match returned:
        case (torch.Tensor() as forwarded, torch.Tensor() as generated) if forwarded.shape[:1] == generated.shape[:1]:
            return forwarded, generated
    raise TaskError(
        "a task's forward_and_generate must return two tensors with a row for each sample, the outputs of forward and "
        f"the answers of generate, but returned {_described(returned)}"
    )


def _described(returned: object) -> str:
    parts = returned if isinstance(returned, tuple) else (returned,)
    return " and ".join(
        f"a tensor of shape {tuple(part.shape)}" if isinstance(part, torch.Tensor) else f"a {type(part).__name__}"
        for part in parts
    )


def _checked(part: object) -> torch.Tensor:
    """Return the outputs of a batch if they are a tensor with features."""
    if not isinstance(part, torch.Tensor):
        raise TaskError(
            f"a task's forward must return a tensor of shape (samples, ..., features), but returned a "
            f"{type(part).__name__}; return the outputs that count, such as the logits"
        )
    if part.dim() < 2:
        raise TaskError(
            f"a task's outputs must have shape (samples, ..., features), but got {tuple(part.shape)}; return one row "
            "per sample from forward, such as the logits instead of a loss"
        )
    return part


def judged(task: Task, model: nn.Module, split: Split, report: Report = silent) -> torch.Tensor:
    """Return what the task's accuracy takes: the result of its ``generate`` if it has one, else its outputs.

    Raises:
        TaskError: as ``outputs``.
    """
    answers = _generated(task, model, split, report)
    return outputs(task, model, split, report) if answers is None else answers


def _generated(task: Task, model: nn.Module, split: Split, report: Report) -> torch.Tensor | None:
    generate = _attribute(task, "generate")
    if generate is None:
        return None
    report(Step(stage=Stage.GENERATING))
    with torch.inference_mode():
        answers: torch.Tensor = generate(model, split).cpu()
    return answers


def number(accuracy: object) -> float:
    """Return what a task's ``accuracy`` returned as a float; a tensor or an array of one element is one, too.

    Raises:
        TaskError: if it is anything else.
    """
    if isinstance(accuracy, torch.Tensor) and accuracy.numel() == 1:
        accuracy = accuracy.item()
    if isinstance(accuracy, np.ndarray) and accuracy.size == 1:
        accuracy = accuracy.item()
    if isinstance(accuracy, int | float | np.number):
        return float(accuracy)
    raise TaskError(
        f"a task's accuracy must return a number, but returned {reprlib.repr(accuracy)}, a {type(accuracy).__name__}"
    )


def divergence(candidate: torch.Tensor, reference: torch.Tensor, kind: OutputKind) -> torch.Tensor:
    """Return each sample's divergence from full precision: 0 for equal outputs, shape ``(samples,)``.

    Embeddings: ``1 - cos``. Logits: ``KL(reference || candidate)`` in nats. Both are computed over the last
    dimension and averaged over the dimensions in between, for example the tokens.
    Undefined values such as nan count as infinite, so that a model that overflows is measured like any other
    and never looks good.

    Args:
        candidate: outputs of the candidate, shape ``(samples, ..., features)``.
        reference: outputs of full precision, same shape.
        kind: kind of the outputs.
    """
    measure = _cosine if kind is OutputKind.EMBEDDING else _kullback_leibler
    rows = max(1, _BYTES_AT_ONCE // (candidate.element_size() * max(1, candidate.shape[-1])))
    pieces = zip(*(torch.split(part.flatten(0, -2), rows) for part in (candidate, reference)), strict=True)
    each = torch.cat([measure(some, theirs) for some, theirs in pieces]).view(candidate.shape[:-1])
    averaged = each.flatten(1).mean(dim=1) if each.dim() > 1 else each
    # Rounding can make the divergence of nearly equal outputs slightly negative.
    return averaged.clamp(min=0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))


def _cosine(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    distance = 1.0 - F.cosine_similarity(candidate.double(), reference.double(), dim=-1)
    return distance.masked_fill((candidate == reference).all(dim=-1), 0.0)  # the angle of zero vectors is undefined


def _kullback_leibler(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the divergence of each row of two matrices, float64.

    With the differences ``d`` of the logits it is ``log E[exp(d)] - E[d]`` under the reference's probabilities. A
    constant in ``d`` does not matter, so their mean is subtracted first. What remains are sums of positive terms,
    which need no float64.
    """
    if candidate.shape[-1] < _LARGE:
        return _kullback_leibler_in_float64(candidate, reference)
    apart = candidate - reference
    # False also where something is not finite.
    fits = (_spread(reference) < _SPREAD) & (_spread(apart) < _APART)
    if not fits.all():
        each = _kullback_leibler_in_float64(candidate, reference)
        each[fits] = _kullback_leibler(candidate[fits], reference[fits])
        return each
    probability = F.softmax(reference, dim=-1)
    total = probability.sum(dim=-1)
    apart -= (torch.linalg.vecdot(probability, apart) / total)[:, None]
    mean = (torch.linalg.vecdot(probability, apart) / total).double()
    above = (torch.linalg.vecdot(probability, torch.expm1(apart).sub_(apart)) / total).double()  # E[exp(d) - 1 - d]
    divergences: torch.Tensor = torch.log1p(above + mean) - mean
    return divergences


def _spread(rows: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(rows, dim=-1)
    spread: torch.Tensor = high - low
    return spread


def _kullback_leibler_in_float64(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    log_reference = F.log_softmax(reference.double(), dim=-1)
    probability = log_reference.exp()
    each = probability * (log_reference - F.log_softmax(candidate.double(), dim=-1))
    return each.masked_fill(probability == 0.0, 0.0).sum(dim=-1)  # 0 log 0 = 0: masked classes contribute nothing
