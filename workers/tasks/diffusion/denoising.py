"""Denoisers of diffusion models: one step is the forward pass, and accuracy is what a whole loop of them makes."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from workers.device.placement import beside
from workers.measurement import Workload
from workers.task import OutputKind, Split, Timed
from workers.tasks.checks import require_integer, require_text
from workers.tasks.diffusion.denoisers import Denoiser, build_denoiser, build_schedule, denoiser_of

#: The model's arguments: latents, ``timestep`` and conditions, each with one row a sample.
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A denoiser of diffusers; accuracy is the mean cosine of the samples it makes to full precision's, 0 at least.

    A sample begins as noise of a fixed seed and takes all steps of a DDIM schedule, which draws nothing. The latents
    that full precision comes by on its way calibrate and are evaluated on, so that all steps are in the data.
    """

    #: A folder of safetensors or of a pipeline, the name of one on the hub, or ``tiny-dit``, ``tiny-unet``.
    checkpoint: str = "tiny-dit"
    #: Of the model in the folder of a pipeline, such as ``unet``; empty if the checkpoint is the model.
    subfolder: str = ""
    #: Steps of the sampling loop.
    steps: int = 10
    #: Samples made to calibrate, to be evaluated on, and to be held out, each.
    samples: int = 8
    #: Seed of noise and conditions.
    seed: int = 0

    output_kind = OutputKind.EMBEDDING

    def __post_init__(self) -> None:
        require_text("checkpoint", self.checkpoint)
        require_text("subfolder", self.subfolder)
        for name, high in (("steps", 1000), ("samples", 1 << 20)):
            require_integer(name, getattr(self, name), low=1, high=high)
        require_integer("seed", self.seed, low=0, high=1 << 60)

    def build_model(self) -> nn.Module:
        """Return the checkpoint's model in fp32."""
        return build_denoiser(self.checkpoint, self.subfolder)

    def calibration(self) -> Sequence[Batch]:
        """Return a batch for each step."""
        return self._paths["calibration"]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return a batch for each step, of other samples for each split."""
        return self._paths[split]

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return what the model takes for noise, shape ``(samples, features)``."""
        predicted: torch.Tensor = model(**batch).sample
        return predicted.flatten(1)

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the final latents of the split's samples, shape ``(samples, features)``."""
        return self._sampled(model, beside(model, self._paths[split][0]))[1].flatten(1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the mean cosine of final latents to full precision's; opposite ones and nan count as 0."""
        return agreement(outputs, self._finals[split])

    def latency_batch(self, batch_size: int) -> Batch:
        """Return samples that calibrate at the middle step, from the first again if there are too few."""
        return self._first(batch_size, self.steps // 2)

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return sampling, the whole loop from noise to final latents."""
        begin = self._first(batch_size, 0)
        return {Workload.SAMPLING: Timed(prepare=lambda model: beside(model, begin), run=self._sampled)}

    @functools.cached_property
    def _denoiser(self) -> Denoiser:
        return denoiser_of(self.checkpoint, self.subfolder)

    @functools.cached_property
    def _schedule(self) -> Any:
        return build_schedule(self.checkpoint, self.steps)

    @functools.cached_property
    def _made(self) -> Mapping[str, tuple[list[Batch], torch.Tensor]]:
        """What full precision comes by and arrives at, for calibration and each split."""
        model, draw = self.build_model(), torch.Generator().manual_seed(self.seed)
        begins = {part: self._noise(draw) for part in ("calibration", Split.EVALUATION, Split.HELD_OUT)}
        with torch.inference_mode():
            return {part: self._sampled(model, begin) for part, begin in begins.items()}

    @property
    def _paths(self) -> dict[str, list[Batch]]:
        return {part: path for part, (path, _) in self._made.items()}

    @property
    def _finals(self) -> dict[str, torch.Tensor]:
        return {part: final.flatten(1) for part, (_, final) in self._made.items()}

    def _noise(self, draw: torch.Generator) -> Batch:
        """Return the arguments of the first step."""
        return {
            self._denoiser.latents: torch.randn(self.samples, *self._denoiser.shape, generator=draw),
            "timestep": self._schedule.timesteps[:1].expand(self.samples),
            **self._denoiser.conditions(self.samples, draw),
        }

    def _first(self, count: int, step: int) -> Batch:
        rows = torch.arange(count) % self.samples
        return {name: value[rows] for name, value in self._paths["calibration"][step].items()}

    def _sampled(self, model: nn.Module, begin: Batch) -> tuple[list[Batch], torch.Tensor]:
        """Return the arguments of every step from ``begin`` on, and the final latents."""
        latents, path = begin[self._denoiser.latents], []
        for step in self._schedule.timesteps:
            path.append(
                {**begin, self._denoiser.latents: latents, "timestep": step.to(latents.device).expand(len(latents))}
            )
            # Models that predict a variance too have it behind the noise.
            noise = model(**path[-1]).sample[:, : latents.shape[1]]
            latents = self._schedule.step(noise, step, latents).prev_sample
        return path, latents


def agreement(outputs: torch.Tensor, right: torch.Tensor) -> float:
    """Return the mean cosine of samples to the right ones, shape ``(samples, features)``; opposite and nan are 0."""
    cosines = F.cosine_similarity(outputs.double(), right.double(), dim=-1)
    return float(cosines.nan_to_num(nan=0.0).clamp(min=0.0).mean())
