"""Denoisers of diffusion models: the forward pass is one step; accuracy compares the samples of a whole loop."""

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

#: The model's arguments: latents, ``timestep`` and conditions, with one row per sample.
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A denoiser of diffusers; accuracy is the mean cosine of its samples to those of full precision, at least 0.

    Sampling starts from noise with a fixed seed and runs all steps of a deterministic DDIM schedule. Calibration and
    evaluation use the latents of full precision at all steps.
    """

    #: A folder of safetensors or of a pipeline, a name on the hub, or ``tiny-dit``, ``tiny-unet``.
    checkpoint: str = "tiny-dit"
    #: The model's subfolder in the folder of a pipeline, such as ``unet``; empty if the checkpoint is the model.
    subfolder: str = ""
    #: Steps of the sampling loop.
    steps: int = 10
    #: Samples each for calibration, evaluation and held-out data.
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
        """Return one batch per step."""
        return self._paths["calibration"]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return one batch per step, with different samples per split."""
        return self._paths[split]

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's prediction, such as the noise, shape ``(samples, features)``."""
        predicted: torch.Tensor = model(**batch).sample
        return predicted.flatten(1)

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the final latents of the split's samples, shape ``(samples, features)``."""
        return self._sampled(model, beside(model, self._paths[split][0]))[1].flatten(1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the mean cosine of final latents to those of full precision; negative cosines and nan count as 0."""
        return agreement(outputs, self._finals[split])

    def latency_batch(self, batch_size: int) -> Batch:
        """Return calibration samples at the middle step, repeated if there are too few."""
        return self._first(batch_size, self.steps // 2)

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return the workload sampling: the whole loop from noise to final latents."""
        begin = self._first(batch_size, 0)
        return {Workload.SAMPLING: Timed(prepare=lambda model: beside(model, begin), run=self._sampled)}

    @functools.cached_property
    def _denoiser(self) -> Denoiser:
        return denoiser_of(self.checkpoint, self.subfolder)

    @functools.cached_property
    def _schedule(self) -> Any:
        return build_schedule(self.checkpoint, self.steps)

    @functools.cached_property
    def _reference(self) -> Mapping[str, tuple[list[Batch], torch.Tensor]]:
        """Arguments of every step and final latents of full precision, for calibration and each split."""
        model, draw = self.build_model(), torch.Generator().manual_seed(self.seed)
        begins = {part: self._noise(draw) for part in ("calibration", Split.EVALUATION, Split.HELD_OUT)}
        with torch.inference_mode():
            return {part: self._sampled(model, begin) for part, begin in begins.items()}

    @property
    def _paths(self) -> dict[str, list[Batch]]:
        return {part: path for part, (path, _) in self._reference.items()}

    @property
    def _finals(self) -> dict[str, torch.Tensor]:
        return {part: final.flatten(1) for part, (_, final) in self._reference.items()}

    def _noise(self, draw: torch.Generator) -> Batch:
        """Return the arguments of the first step, with random noise."""
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
            # Models that also predict a variance return it after the noise.
            noise = model(**path[-1]).sample[:, : latents.shape[1]]
            latents = self._schedule.step(noise, step, latents).prev_sample
        return path, latents


def agreement(outputs: torch.Tensor, right: torch.Tensor) -> float:
    """Return the mean cosine of samples to expected ones, shape ``(samples, features)``; negative and nan are 0."""
    cosines = F.cosine_similarity(outputs.double(), right.double(), dim=-1)
    return float(cosines.nan_to_num(nan=0.0).clamp(min=0.0).mean())
