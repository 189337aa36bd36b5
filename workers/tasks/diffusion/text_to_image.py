"""Text-to-image pipelines, searched as one model: text encoder, denoiser and decoder share one budget."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.device.placement import beside
from workers.errors import TaskError
from workers.measurement import Workload
from workers.task import OutputKind, Split, Timed
from workers.tasks.checks import read_text, require_integer, require_number, require_text
from workers.tasks.diffusion.denoising import agreement
from workers.tasks.diffusion.pipelines import TINY, Pipeline, build_pipeline, encode, latents_of, schedule_of

#: The model's arguments: ``prompts``, ``latents`` and ``timestep``, with one row per sample.
Batch = dict[str, torch.Tensor]

#: Prompts alternate between calibration, evaluation and held-out data.
_PARTS = {"calibration": 0, Split.EVALUATION: 1, Split.HELD_OUT: 2}
_PROMPTS = (
    "a red fox in the snow", "a bowl of ripe oranges", "an old harbour at night",
    "a steam train on a bridge", "a field of tall sunflowers", "a quiet library",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextToImage:
    """A pipeline of diffusers; accuracy is the mean cosine of its images to those of full precision, at least 0.

    Sampling starts from noise with a fixed seed and runs all steps of a deterministic DDIM schedule. Calibration and
    evaluation use the latents of full precision at all steps; outputs are the images that a step's prediction implies.
    """

    #: The folder of a pipeline, a name on the hub, or ``tiny-text-to-image``.
    checkpoint: str = TINY
    #: A file of UTF-8 text with one prompt per line; empty for a few built-in prompts.
    prompts: str = ""
    #: Steps of the sampling loop.
    steps: int = 20
    #: Scale of classifier-free guidance, which also runs every step without the prompt; 1 for none.
    guidance: float = 7.5
    #: Images each for calibration, evaluation and held-out data.
    samples: int = 4
    #: Seed of the noise.
    seed: int = 0

    output_kind = OutputKind.EMBEDDING

    def __post_init__(self) -> None:
        require_text("checkpoint", self.checkpoint)
        require_text("prompts", self.prompts)
        for name, high in (("steps", 1000), ("samples", 1 << 20)):
            require_integer(name, getattr(self, name), low=1, high=high)
        require_number("guidance", self.guidance, low=1.0, high=100.0)
        require_integer("seed", self.seed, low=0, high=1 << 60)

    def build_model(self) -> nn.Module:
        """Return the checkpoint's pipeline in fp32."""
        return build_pipeline(self.checkpoint, self.guidance)

    def calibration(self) -> Sequence[Batch]:
        """Return one batch per step."""
        return self._reference["calibration"][0]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return one batch per step, with different prompts per split."""
        return self._reference[split][0]

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the images that one step's prediction implies, shape ``(samples, features)``."""
        images: torch.Tensor = model(**batch)[0]
        return images.flatten(1)

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the images of the split's prompts, shape ``(samples, features)``."""
        return self._sampled_with_path(model, beside(model, self._begin(split)))[1].flatten(1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the mean cosine of images to those of full precision; negative cosines and nan count as 0."""
        return agreement(outputs, self._reference[split][1].flatten(1))

    def latency_batch(self, batch_size: int) -> Batch:
        """Return calibration samples at the middle step, repeated if there are too few."""
        return self._repeated(self.calibration()[self.steps // 2], batch_size)

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return the workload sampling: from the tokens of prompts to images."""
        begin = self._repeated(self._begin("calibration"), batch_size)
        return {Workload.SAMPLING: Timed(prepare=lambda model: beside(model, begin), run=self._sampled)}

    @functools.cached_property
    def _reference(self) -> Mapping[str, tuple[list[Batch], torch.Tensor]]:
        """Arguments of every step and final images of full precision, for calibration and each split."""
        model = self.build_model()
        with torch.inference_mode():
            return {part: self._sampled_with_path(model, self._begin(part)) for part in _PARTS}

    def _begin(self, part: str) -> Batch:
        """Return the tokens of prompts, and noise."""
        draw = torch.Generator().manual_seed(self.seed + _PARTS[part])
        lines = self._lines[_PARTS[part] :: len(_PARTS)]
        chosen = [lines[row % len(lines)] for row in range(self.samples)]
        prompts = [chosen] if self.guidance == 1.0 else [chosen, [""] * self.samples]
        return {
            "prompts": torch.stack([encode(self.checkpoint, texts) for texts in prompts], dim=1),
            "latents": torch.randn(self.samples, *self._shape, generator=draw),
        }

    @functools.cached_property
    def _schedule(self) -> Any:
        return schedule_of(self.checkpoint, self.steps)

    @functools.cached_property
    def _shape(self) -> tuple[int, int, int]:
        return latents_of(self.checkpoint)

    @functools.cached_property
    def _lines(self) -> Sequence[str]:
        if not self.prompts:
            return _PROMPTS
        lines = read_text("prompts", self.prompts).splitlines()
        found = [line for line in lines if line.strip()]
        if len(found) < len(_PARTS):
            raise TaskError(
                f"{self.prompts!r} must have at least {len(_PARTS)} prompts, but has {len(found)}; add more"
            )
        return found

    def _repeated(self, batch: Batch, count: int) -> Batch:
        """Return ``count`` samples, repeated if there are too few."""
        rows = torch.arange(count) % self.samples
        return {name: value[rows] for name, value in batch.items()}

    def _sampled_with_path(self, model: nn.Module, begin: Batch) -> tuple[list[Batch], torch.Tensor]:
        """Return the arguments of every step from noise on, and the images that the last prediction implies."""
        latents, path = begin["latents"], []
        images = latents
        for step in self._schedule.timesteps:
            path.append({**begin, "latents": latents, "timestep": step.to(latents.device).expand(self.samples)})
            images, predicted = model(**path[-1])
            latents = self._schedule.step(predicted, step, latents).prev_sample
        return path, images

    def _sampled(self, model: nn.Module, begin: Batch) -> torch.Tensor:
        """Return the images of the same loop as deployed: it encodes the prompts once and decodes the images once."""
        assert isinstance(model, Pipeline)
        latents, states = begin["latents"], model.encoded(begin["prompts"])
        pointed = latents
        for step in self._schedule.timesteps:
            times = step.to(latents.device).expand(len(latents))
            predicted = model.denoised(latents, times, states)
            pointed = model.pointed(latents, times, predicted)
            latents = self._schedule.step(predicted, step, latents).prev_sample
        return model.decoded(pointed)
