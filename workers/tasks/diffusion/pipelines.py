"""Text-to-image pipelines of diffusers as one model: text encoder, denoiser and image decoder."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import explained, quiet_transformers, source
from workers.tasks.diffusion.denoisers import build_denoiser, build_schedule, denoiser_of, diffusers_used

#: The checkpoint without files, which has random weights and UTF-8 bytes as tokens.
TINY = "tiny-text-to-image"
#: Sizes of its text encoder and its autoencoder; its denoiser is ``tiny-unet``.
_TEXT = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
_AUTOENCODER = {
    "block_out_channels": (16, 32), "latent_channels": 4, "norm_num_groups": 8, "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


class Pipeline(nn.Module):
    """The parts of a pipeline under the names of their folders; of the autoencoder only the decoder."""

    def __init__(
        self, text_encoder: nn.Module, unet: nn.Module, vae: nn.Module, *, schedule: Any, guidance: float
    ) -> None:
        super().__init__()
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self._guidance = guidance
        #: Share of the image in the variance, at each time step.
        self.register_buffer("_kept", schedule.alphas_cumprod.clone(), persistent=False)
        self._predicts_velocity = schedule.config.prediction_type == "v_prediction"

    def forward(
        self, prompts: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images that one step's prediction implies, and the prediction, which has the latents' shape.

        Args:
            prompts: tokens, shape ``(samples, prompts, tokens)``. With guidance each sample has two prompts, the second
                of them empty.
            latents: shape ``(samples, channels, height, width)``.
            timestep: shape ``(samples,)``.
        """
        predicted = self.denoised(latents, timestep, self.encoded(prompts))
        return self.decoded(self.pointed(latents, timestep, predicted)), predicted

    def encoded(self, prompts: torch.Tensor) -> torch.Tensor:
        """Return the encoded prompts, all first prompts before all second ones; shape ``(all, tokens, width)``."""
        states: torch.Tensor = self.text_encoder(prompts.transpose(0, 1).flatten(0, 1)).last_hidden_state
        return states

    def denoised(self, latents: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Return the denoiser's prediction, with guidance if enabled; it has the shape of the latents."""
        if self._guidance == 1.0:
            alone: torch.Tensor = self.unet(latents, timestep, encoder_hidden_states=states).sample
            return alone
        twice = (torch.cat([given, given]) for given in (latents, timestep))
        both = self.unet(*twice, encoder_hidden_states=states).sample
        count = latents.shape[0]  # neither len() nor chunk, which would be constant in a traced graph
        right, without = both[:count], both[count:]
        guided: torch.Tensor = without + self._guidance * (right - without)
        return guided

    def pointed(self, latents: torch.Tensor, timestep: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return the noise-free latents that a prediction implies (Song et al., arXiv:2010.02502, eq. 9)."""
        kept = self.get_buffer("_kept")[timestep].view(-1, 1, 1, 1)
        if self._predicts_velocity:
            return kept.sqrt() * latents - (1.0 - kept).sqrt() * predicted
        return (latents - (1.0 - kept).sqrt() * predicted) / kept.sqrt()

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images of noise-free latents."""
        vae: Any = self.vae
        config = vae.config
        images: torch.Tensor = vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)).sample
        return images


def build_pipeline(checkpoint: str, guidance: float) -> Pipeline:
    """Return a pipeline in fp32 and evaluation mode.

    Args:
        checkpoint: ``TINY``, the folder of a pipeline, or a name on the hub.
        guidance: scale of classifier-free guidance, 1 for none.

    Raises:
        TaskError: if it cannot be loaded, or is not supported.
    """
    schedule = schedule_of(checkpoint, 1)
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise TaskError(
            f"the scheduler of checkpoint {checkpoint!r} predicts {schedule.config.prediction_type!r}, but this task "
            "supports 'epsilon' and 'v_prediction'; write a task for it"
        )
    unet = build_denoiser("tiny-unet", "") if checkpoint == TINY else build_denoiser(checkpoint, "unet")
    vae: Any = _autoencoder(checkpoint)
    # Drop the encoder, which generating images does not use.
    vae.encoder, vae.quant_conv = nn.Identity(), nn.Identity()
    return Pipeline(_text_encoder(checkpoint), unet, vae, schedule=schedule, guidance=guidance).eval()


def schedule_of(checkpoint: str, steps: int) -> Any:
    """Return the pipeline's schedule as a DDIM scheduler."""
    return build_schedule("tiny-unet" if checkpoint == TINY else checkpoint, steps)


def latents_of(checkpoint: str) -> tuple[int, int, int]:
    """Return the shape of one sample's latents."""
    return (denoiser_of("tiny-unet", "") if checkpoint == TINY else denoiser_of(checkpoint, "unet")).shape


def encode(checkpoint: str, prompts: Sequence[str]) -> torch.Tensor:
    """Return the tokens of prompts, truncated or padded to the text encoder's length; shape ``(prompts, tokens)``."""
    if checkpoint == TINY:
        most = int(_TEXT["max_position_embeddings"])
        rows = [[256, *list(prompt.encode())[: most - 2]] for prompt in prompts]
        return torch.tensor([[*row, *[257] * (most - len(row))] for row in rows])
    tokenizer = _tokenizer(checkpoint)
    found = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    tokens: torch.Tensor = found["input_ids"]
    return tokens


@functools.cache
def _tokenizer(checkpoint: str) -> Any:
    with quiet_transformers():
        from transformers import AutoTokenizer

        with explained("tokenizer", checkpoint, (TINY,)):
            return AutoTokenizer.from_pretrained(source(checkpoint), subfolder="tokenizer")


class _Positions(nn.Embedding):
    """A position embedding that is never quantized, because CLIP's text encoder reads the shape of its weight.

    Its own ``forward`` keeps it from being discovered as a quantizable layer.
    """

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows of the given positions."""
        return super().forward(positions)


def _text_encoder(checkpoint: str) -> nn.Module:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(1)
        if checkpoint == TINY:
            sizes: Any = _TEXT
            model: Any = CLIPTextModel(CLIPTextConfig(**sizes))
        else:
            with explained("text encoder", checkpoint, (TINY,)):
                model = CLIPTextModel.from_pretrained(
                    source(checkpoint), subfolder="text_encoder", dtype=torch.float32, use_safetensors=True
                )
    for module in model.modules():
        if isinstance(table := getattr(module, "position_embedding", None), nn.Embedding):
            table.__class__ = _Positions
    found: nn.Module = model
    return found


def _autoencoder(checkpoint: str) -> nn.Module:
    with diffusers_used("autoencoder", checkpoint), torch.random.fork_rng(devices=[]):
        import diffusers

        torch.manual_seed(2)
        cls: Any = diffusers.AutoencoderKL
        if checkpoint == TINY:
            return cls(**_AUTOENCODER)  # type: ignore[no-any-return]
        return cls.from_pretrained(  # type: ignore[no-any-return]
            source(checkpoint), subfolder="vae", torch_dtype=torch.float32, use_safetensors=True,
            low_cpu_mem_usage=False,
        )  # fmt: skip
