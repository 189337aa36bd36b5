"""What a user gives ``tune`` besides limits and a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from autotune.tuning.metric import Metric
from workers.task import OutputKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Data, labels and metric; see the arguments of ``tune``."""

    batches: Any
    metric: Metric | None = None
    labels: Any = None
    held_out: Any = None
    held_out_labels: Any = None
    output_kind: OutputKind = OutputKind.LOGITS
    output: Callable[[Any], torch.Tensor] | None = None
    samples: int | None = None
