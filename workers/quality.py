"""Outputs of a model on a task's data, and how far they diverge from full precision's."""

import torch
import torch.nn.functional as F
from torch import nn

from workers.task import OutputKind, Split, Task


def outputs(task: Task, model: nn.Module, split: Split) -> torch.Tensor:
    """Return the model's outputs on every batch of ``split``, in order; shape ``(samples, ...)``, fp32, CPU."""
    with torch.inference_mode():
        return torch.cat([task.forward(model, batch).float().cpu() for batch in task.evaluation(split)])


def divergence(candidate: torch.Tensor, reference: torch.Tensor, kind: OutputKind) -> torch.Tensor:
    """Return each sample's divergence from full precision, at least 0; infinite where an output is not finite.

    Embeddings: ``1 - cos``. Logits: ``KL(reference || candidate)`` in nats. Both are taken in float64
    over the last dimension and averaged over the dimensions between, for example the tokens.

    Args:
        candidate: outputs of the candidate, shape ``(samples, ..., features)``.
        reference: outputs of full precision, same shape.
        kind: what the outputs are.
    """
    measure = _cosine if kind is OutputKind.EMBEDDING else _kullback_leibler
    each = measure(candidate.double(), reference.double())
    averaged = each.flatten(1).mean(dim=1) if each.dim() > 1 else each
    # Rounding can leave a divergence of equal outputs a hair below zero; nan must never look good.
    return torch.nan_to_num(averaged.clamp(min=0.0), nan=float("inf"))


def _cosine(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return 1.0 - F.cosine_similarity(candidate, reference, dim=-1)


def _kullback_leibler(candidate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    log_reference = F.log_softmax(reference, dim=-1)
    return (log_reference.exp() * (log_reference - F.log_softmax(candidate, dim=-1))).sum(dim=-1)
