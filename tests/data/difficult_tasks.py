"""Tasks for tests that print wherever they can, and whose data lack something."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks import register

print("a task file that prints")


@register("difficult")
@dataclass(frozen=True)
class Difficult:
    """Two small linear layers."""

    #: What is wrong with the held-out data: nothing, raises, empty, no-samples, accuracy or nan.
    held_out: str = "nothing"

    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        print("loading weights ...")
        os.write(1, b"a library that prints\n")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()

    def _inputs(self, seed: int, samples: int) -> torch.Tensor:
        return torch.randn(samples, 32, generator=torch.Generator().manual_seed(seed))

    def calibration(self) -> Sequence[torch.Tensor]:
        return [self._inputs(1, 64)]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        print("evaluating on", split)
        if split is Split.HELD_OUT and self.held_out == "raises":
            raise NotImplementedError("no held-out\ndata yet")
        if split is Split.HELD_OUT and self.held_out in ("empty", "no-samples"):
            return [] if self.held_out == "empty" else [self._inputs(3, 0)]
        return [self._inputs(2 if split is Split.EVALUATION else 3, 64)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        print("judging", len(outputs), "samples", file=sys.stdout)
        if split is Split.HELD_OUT and self.held_out == "accuracy":
            raise KeyError("held_out")
        if split is Split.HELD_OUT and self.held_out == "nan":
            return float("nan")
        return float((outputs.argmax(-1) % 2 == 0).double().mean())

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return self._inputs(4, batch_size)
