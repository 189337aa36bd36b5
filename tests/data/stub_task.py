"""A task file for tests of the service: maps are not measured but computed, so that a trial costs what it is told to.

It replaces how the worker measures, for every task of its process.
"""

import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.measurement import LatencySamples, Measurement
from workers.task import OutputKind, Split
from workers.tasks import register


@register("stub")
@dataclass(frozen=True)
class Stub:
    """A chain of small linear layers."""

    #: Layers, of which each takes any choice.
    layers: int = 6
    #: Seconds a trial takes.
    seconds: float = 0.0
    #: File to which every measurement adds its trial's number; none if empty.
    diary: str = ""

    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(16, 16) for _ in range(self.layers))).eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return [torch.ones(4, 16)]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return self.calibration()

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch)  # type: ignore[no-any-return]

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return 1.0

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return torch.ones(batch_size, 16)


def measure(self: Evaluator, candidate: Candidate) -> Measurement:
    """Return figures that depend on the map alone."""
    task = self._task
    assert isinstance(task, Stub)
    time.sleep(task.seconds)
    if task.diary:
        with Path(task.diary).open("a") as diary:
            diary.write(f"{candidate.number} {os.getpid()}\n")
    draws = [zlib.crc32(f"{layer}{choice}".encode()) / 2**32 for layer, choice in candidate.choices.items()]
    quantized = [draw for draw, choice in zip(draws, candidate.choices.values(), strict=True) if choice != "fp32"]
    latency = LatencySamples(
        batch_size=1, candidate_ms=np.full(20, 10.0 - sum(quantized)), reference_ms=np.full(4, 10.0)
    )
    loss = sum(draw**3 for draw in quantized) / 100
    return Measurement(
        accuracy=1.0 - loss, divergence=loss, weight_bytes=self.description.weight_bytes(candidate.choices),
        latency=(latency,), working_bytes=8, held_out=(1.0 - loss, 1.0) if candidate.final else None,
        seconds=task.seconds, forward_seconds=task.seconds, environment=self.description.environment,
    )  # fmt: skip


Evaluator.measure = measure  # type: ignore[method-assign]
