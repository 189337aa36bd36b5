"""Pipelines from text to images, searched as one model: text encoder, denoiser and decoder under one budget."""

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

#: The model's arguments: ``prompts``, ``latents`` and ``timestep``, each with one row a sample.
Batch = dict[str, torch.Tensor]

#: Of every three prompts one calibrates, one is evaluated on, and one is held out.
_PARTS = {"calibration": 0, Split.EVALUATION: 1, Split.HELD_OUT: 2}
_PROMPTS = (
    "a red fox in the snow", "a bowl of ripe oranges", "an old harbour at night",
    "a steam train on a bridge", "a field of tall sunflowers", "a quiet library",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextToImage:
    """A pipeline of diffusers; accuracy is the mean cosine of its images to full precision's, 0 at least.

    An image begins as noise of a fixed seed and takes all steps of a DDIM schedule, which draws nothing. The latents
    that full precision comes by on its way calibrate and are evaluated on: outputs are the images they point to.
    """

    #: The folder of a pipeline, the name of one on the hub, or ``tiny-text-to-image``.
    checkpoint: str = TINY
    #: A file of UTF-8 text with one prompt a line; empty for a few of our own.
    prompts: str = ""
    #: Steps of the sampling loop.
    steps: int = 20
    #: Scale of classifier-free guidance, which runs every step without the prompt too; 1 for none.
    guidance: float = 7.5
    #: Images made to calibrate, to be evaluated on, and to be held out, each.
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
        """Return a batch for each step."""
        return self._made["calibration"][0]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return a batch for each step, of other prompts for each split."""
        return self._made[split][0]

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the images that one step points to, shape ``(samples, features)``."""
        images: torch.Tensor = model(**batch)[0]
        return images.flatten(1)

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the images of the split's prompts, shape ``(samples, features)``."""
        return self._walked(model, beside(model, self._begin(split)))[1].flatten(1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the mean cosine of images to full precision's; opposite ones and nan count as 0."""
        return agreement(outputs, self._made[split][1].flatten(1))

    def latency_batch(self, batch_size: int) -> Batch:
        """Return samples that calibrate at the middle step, from the first again if there are too few."""
        return self._repeated(self.calibration()[self.steps // 2], batch_size)

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return sampling, from the tokens of prompts to images."""
        begin = self._repeated(self._begin("calibration"), batch_size)
        return {Workload.SAMPLING: Timed(prepare=lambda model: beside(model, begin), run=self._sampled)}

    @functools.cached_property
    def _made(self) -> Mapping[str, tuple[list[Batch], torch.Tensor]]:
        """What full precision comes by, and the images it arrives at, for calibration and each split."""
        model = self.build_model()
        with torch.inference_mode():
            return {part: self._walked(model, self._begin(part)) for part in _PARTS}

    def _begin(self, part: str) -> Batch:
        """Return tokens of prompts and noise."""
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
            raise TaskError(f"the prompts {self.prompts!r} must be at least {len(_PARTS)}, but are {len(found)}")
        return found

    def _repeated(self, batch: Batch, count: int) -> Batch:
        """Return so many samples, from the first again if there are too few."""
        rows = torch.arange(count) % self.samples
        return {name: value[rows] for name, value in batch.items()}

    def _walked(self, model: nn.Module, begin: Batch) -> tuple[list[Batch], torch.Tensor]:
        """Return the arguments of every step from noise on, and the images that the last one points to."""
        latents, path = begin["latents"], []
        images = latents
        for step in self._schedule.timesteps:
            path.append({**begin, "latents": latents, "timestep": step.to(latents.device).expand(self.samples)})
            images, predicted = model(**path[-1])
            latents = self._schedule.step(predicted, step, latents).prev_sample
        return path, images

    def _sampled(self, model: nn.Module, begin: Batch) -> torch.Tensor:
        """Return the images of the same loop as it is deployed: texts are read once, and images made once."""
        assert isinstance(model, Pipeline)
        latents, states = begin["latents"], model.encoded(begin["prompts"])
        pointed = latents
        for step in self._schedule.timesteps:
            times = step.to(latents.device).expand(len(latents))
            predicted = model.denoised(latents, times, states)
            pointed = model.pointed(latents, times, predicted)
            latents = self._schedule.step(predicted, step, latents).prev_sample
        return model.decoded(pointed)
