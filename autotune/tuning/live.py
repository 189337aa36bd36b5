"""The task of a live model and the data in hand."""

import copy
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from autotune.tuning import data
from autotune.tuning.data import Data, Piece
from autotune.tuning.inputs import Inputs
from autotune.tuning.metric import Metric, roles
from workers.errors import TaskError
from workers.model.compiled import uncompiled
from workers.task import Split, in_evaluation_mode
from workers.tasks.generic import ModelTask

#: Most samples that are read if nobody says, and the least that are used however slow the model is.
MOST_SAMPLES, _LEAST_SAMPLES = 2048, 64
#: Share of the budget that one pass over the evaluation data may take.
_PASS_SHARE = 0.01


def live_task(model: nn.Module, inputs: Inputs, budget_s: float | None) -> tuple[ModelTask, list[str]]:
    """Return the task of a model, and sentences about the use of the data.

    Raises:
        TaskError: if model and data do not fit.
    """
    judge, metric = roles(inputs.metric, has_labels=inputs.labels is not None)
    paired = metric is not None and inputs.labels is None
    pieces = data.read(inputs.batches, inputs.labels, paired=paired, most=inputs.samples or MOST_SAMPLES)
    build = functools.partial(copy_of, model)
    seconds = _seconds_of_a_sample(build, pieces[0], inputs.output)
    told = []
    if inputs.samples is None:
        read = sum(piece.samples for piece in pieces)
        pieces = data.at_most(pieces, _affordable(seconds, budget_s))
        told += _cut(read, sum(piece.samples for piece in pieces))
    held_out = None
    if inputs.held_out is not None:
        paired = metric is not None and inputs.held_out_labels is None
        held_out = data.read(inputs.held_out, inputs.held_out_labels, paired=paired, most=MOST_SAMPLES)
    used = data.dealt_out(pieces, [] if judge is not None else held_out)
    task = ModelTask(
        build,
        used.calibration,
        used.evaluation,
        metric=None if metric is None else functools.partial(_of_labels, metric, used.labels),
        judge=judge,
        output_kind=inputs.output_kind,
        output=inputs.output,
    )
    return task, [*told, _described(used, given=held_out is not None, judged=judge is not None)]


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU, in evaluation mode and uncompiled; ``model`` stays as it is.

    Raises:
        TaskError: if it cannot be copied.
    """
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # the model's code may raise anything
        raise TaskError(
            f"the model cannot be copied, which measuring needs: {type(error).__name__}: {error}; detach tensors that "
            "are no parameters, or write a task that builds the model anew"
        ) from error
    return uncompiled(in_evaluation_mode(copied)).cpu()


def _of_labels(metric: Metric, labels: Mapping[Split, Any], outputs: torch.Tensor, split: Split) -> Any:
    return metric(outputs, labels[split])


def _seconds_of_a_sample(
    build: Callable[[], nn.Module], piece: Piece, output: Callable[[Any], torch.Tensor] | None
) -> float:
    """Return the seconds that full precision takes for a sample of the first batch.

    Raises:
        TaskError: if the model does not take the batch.
    """
    task = ModelTask(build, [piece.batch], {}, metric=lambda *_: 0.0, output=output)
    model = task.build_model()
    try:
        with torch.inference_mode():
            task.forward(model, piece.batch)
            start = time.perf_counter()
            task.forward(model, piece.batch)
    except Exception as error:  # the model's code may raise anything
        taken = "keyword arguments" if isinstance(piece.batch, Mapping) else "arguments"
        raise TaskError(
            f"the model does not take the first batch as its {taken}: {type(error).__name__}: {error}. A batch is a "
            "tensor, a mapping of keyword arguments or a tuple of arguments; if its last part holds labels, pass "
            "metric, too"
        ) from error
    return (time.perf_counter() - start) / piece.samples


def _affordable(seconds: float, budget_s: float | None) -> int:
    """Return the samples of which half, the evaluation data, are run within their share of the budget."""
    if budget_s is None:
        return MOST_SAMPLES
    return max(_LEAST_SAMPLES, min(MOST_SAMPLES, round(2 * _PASS_SHARE * budget_s / seconds)))


def _cut(read: int, kept: int) -> list[str]:
    if kept < read:
        return [f"Uses the first {kept} samples, as many as the budget allows; samples=... takes more."]
    return [f"Uses the first {kept} samples; samples=... takes more."] if read >= MOST_SAMPLES else []


def _described(used: Data, *, given: bool, judged: bool) -> str:
    calibration, evaluation, held_out = used.counts
    dealt = f"{calibration} samples calibrate and {evaluation} are evaluated"
    if judged:
        return f"{dealt}. The metric judges models on data of its own, so nothing is held out."
    if given:
        return f"{dealt}; {held_out} held-out samples check the chosen maps at the end."
    return f"{dealt}. {held_out} were split off as held-out data, which check the chosen maps at the end."
