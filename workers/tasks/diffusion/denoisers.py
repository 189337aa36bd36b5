"""Denoisers of diffusers and their schedules: checkpoints, and tiny models with random weights."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import explained, source
from workers.tasks.checks import contained, extra_packages

#: Checkpoints without files: name -> class and configuration.
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny-unet": (
        "UNet2DConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "tiny-dit": (
        "DiTTransformer2DModel",
        {
            "sample_size": 8,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "norm_num_groups": 8,
        },
    ),
}
#: Supported class -> name of its argument for latents.
_LATENTS = {
    "UNet2DModel": "sample",
    "UNet2DConditionModel": "sample",
    "DiTTransformer2DModel": "hidden_states",
}
#: Configuration entries that require conditions unknown to this task.
_UNKNOWN_CONDITIONS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "num_class_embeds")
#: Tokens of the random text condition.
_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoiser:
    """The arguments of a checkpoint's model."""

    #: Name of the argument for latents, and their shape, ``(channels, height, width)``.
    latents: str
    shape: tuple[int, int, int]
    #: Width of the text condition, and number of classes of the class condition; 0 without such a condition.
    text_width: int
    classes: int

    def conditions(self, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random conditions for ``count`` samples, by argument name."""
        if self.text_width:
            return {"encoder_hidden_states": torch.randn(count, _TOKENS, self.text_width, generator=generator)}
        return {"class_labels": torch.randint(self.classes, (count,), generator=generator)} if self.classes else {}


def build_denoiser(checkpoint: str, subfolder: str) -> nn.Module:
    """Return a denoiser in fp32 and evaluation mode.

    Args:
        checkpoint: name of a tiny model, a folder of safetensors, or a name on the hub.
        subfolder: the model's subfolder in the folder of a pipeline; empty if the checkpoint is the model.

    Raises:
        TaskError: if it cannot be loaded, or its conditions are unknown.
    """
    with diffusers_used("model", checkpoint), torch.random.fork_rng(devices=[]):
        import diffusers

        torch.manual_seed(0)
        configuration = _configuration(checkpoint, subfolder)
        cls: Any = getattr(diffusers, configuration["_class_name"])
        model: nn.Module = (
            cls.from_config(configuration)
            if checkpoint in TINY
            else cls.from_pretrained(
                source(checkpoint),
                subfolder=subfolder or None,
                torch_dtype=torch.float32,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # otherwise it would need the library accelerate
            )
        )
    return model.eval()


def denoiser_of(checkpoint: str, subfolder: str) -> Denoiser:
    """Return the arguments of a checkpoint's model.

    Raises:
        TaskError: if it cannot be loaded, or its conditions are unknown.
    """
    with diffusers_used("configuration", checkpoint):
        found = _configuration(checkpoint, subfolder)
    size = found["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    name = found["_class_name"]
    return Denoiser(
        latents=_LATENTS[name],
        shape=(found.get("in_channels", 4), height, width),
        text_width=found["cross_attention_dim"] if name == "UNet2DConditionModel" else 0,
        classes=found.get("num_embeds_ada_norm", 1000) if name == "DiTTransformer2DModel" else 0,
    )


def build_schedule(checkpoint: str, steps: int) -> Any:
    """Return a DDIM scheduler with the pipeline's configuration, or diffusers' default for a model without pipeline."""
    with diffusers_used("scheduler", checkpoint):
        import diffusers

        scheduler: Any = diffusers.DDIMScheduler
        schedule = scheduler(clip_sample=False)
        if checkpoint not in TINY:
            with contextlib.suppress(OSError):  # a model without a pipeline has none
                schedule = scheduler.from_pretrained(source(checkpoint), subfolder="scheduler")
        schedule.set_timesteps(steps)
    return schedule


def _configuration(checkpoint: str, subfolder: str) -> Mapping[str, Any]:
    import diffusers

    if checkpoint in TINY:
        name, sizes = TINY[checkpoint]
        return {"_class_name": name, **sizes}
    contained("subfolder", str(Path(checkpoint, subfolder)))
    loader: Any = diffusers.UNet2DModel
    found: Mapping[str, Any] = loader.load_config(source(checkpoint), subfolder=subfolder or None)
    name = found.get("_class_name", "")
    unknown = [entry for entry in _UNKNOWN_CONDITIONS if found.get(entry) is not None]
    if name not in _LATENTS or unknown or isinstance(found.get("cross_attention_dim"), list):
        raise TaskError(
            f"this task supports {', '.join(_LATENTS)}, but checkpoint {checkpoint!r} is a "
            f"{name or 'model without a class'}{f' with {unknown[0]}' if unknown else ''}; write a task for it"
        )
    return found


@contextlib.contextmanager
def diffusers_used(what: str, checkpoint: str) -> Iterator[None]:
    """Load a part of a checkpoint with diffusers in this context.

    Raises:
        TaskError: if it cannot be loaded.
    """
    with extra_packages(), explained(what, checkpoint, TINY), warnings.catch_warnings():
        # diffusers still passes this argument to the hub's library, which has deprecated it.
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)
        yield
