"""A task for tests whose model misbehaves as soon as its first layer is quantized."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks import register


@register("fragile")
@dataclass(frozen=True)
class Fragile:
    """Two small linear layers."""

    #: What a quantized first layer does: nothing, raise, memory, hang, wait, kill, or kill_once; build fails at once,
    #: and slow takes long for every pass over a whole batch.
    trouble: str = "nothing"
    #: Folder where kill_once leaves its mark, and where wait says that it waits for a file named go.
    marks: str = ""

    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        if self.trouble == "build":
            raise RuntimeError("no weights")
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()

    def _inputs(self, seed: int, samples: int) -> torch.Tensor:
        return torch.randn(samples, 32, generator=torch.Generator().manual_seed(seed))

    def calibration(self) -> Sequence[torch.Tensor]:
        return [self._inputs(1, 64)] * (6 if self.trouble == "slow" else 1)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [self._inputs(2 if split is Split.EVALUATION else 3, 64)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, nn.Sequential)
        if self.trouble == "slow":
            time.sleep(0.01 if len(batch) == 1 else 0.5)
        if type(model[0]) is not nn.Linear:
            self._misbehave()
        return model(batch)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        reference = self.build_model()(self.evaluation(split)[0])
        return float((outputs.argmax(-1) == reference.argmax(-1)).double().mean())

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return self._inputs(4, batch_size)

    def _misbehave(self) -> None:
        if self.trouble == "raise":
            raise RuntimeError("the first layer is in\ntrouble")
        if self.trouble == "memory":
            raise MemoryError("no room")
        if self.trouble == "hang":
            time.sleep(600)
        if self.trouble == "wait":
            (Path(self.marks) / "waits").touch()
            while not (Path(self.marks) / "go").exists():
                time.sleep(0.02)
        mark = Path(self.marks) / "killed"
        if self.trouble == "kill" or (self.trouble == "kill_once" and not mark.exists()):
            if self.trouble == "kill_once":
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
