"""The user's metric: of outputs and labels, or of a model."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from workers.errors import TaskError

#: Returns the accuracy, higher is better: of ``(outputs, labels)``, or of a model.
Metric = Callable[..., Any]


def roles(metric: Metric | None, *, has_labels: bool) -> tuple[Metric | None, Metric | None]:
    """Return a metric as a judge of models or as a function of outputs and labels; the other one is None.

    Without a metric, labels are compared with decisions; without labels either, both are None.
    """
    if metric is None:
        return None, share_right if has_labels else None
    return (None, metric) if has_labels or not _takes_one(metric) else (metric, None)


def _takes_one(metric: Metric) -> bool:
    """Return whether a function requires one argument."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(metric).parameters.values()
    except ValueError:  # a function of C code
        return False
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 1


def share_right(outputs: torch.Tensor, labels: Any) -> float:
    """Return the share of labels that are the decisions of the logits; nan decides nothing.

    Args:
        outputs: logits, shape ``(samples, ..., classes)``.
        labels: numbers of the right classes, shape ``(samples, ...)``.

    Raises:
        TaskError: if the labels have another shape, or are no class numbers.
    """
    if not isinstance(labels, torch.Tensor) or labels.shape != outputs.shape[:-1] or labels.is_floating_point():
        shown = f"shape {tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, torch.Tensor) else "a list"
        raise TaskError(
            f"without a metric, labels must be class numbers of shape {tuple(outputs.shape[:-1])}, but got {shown}; "
            "pass metric=..., a function of (outputs, labels)"
        )
    right = (outputs.argmax(dim=-1) == labels) & ~outputs.isnan().any(dim=-1)
    return float(right.double().mean())
