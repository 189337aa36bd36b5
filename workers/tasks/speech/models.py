"""Whisper models with feature extractors and tokenizers: checkpoints of transformers, and a tiny random model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import explained, quiet_transformers, source
from workers.tasks.speech.audio import RATE, Waveform

#: Special tokens of the tiny model, after the UTF-8 bytes: end and start of an answer.
_END, _START = 256, 257
#: Seconds of audio per pass of the tiny model, in frames of 20 ms.
_TINY_WINDOW_S = 2
#: Checkpoints without files: name -> configuration.
TINY: Mapping[str, Mapping[str, Any]] = {
    "tiny-whisper": {
        "vocab_size": 258,
        "num_mel_bins": 16,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_source_positions": 50 * _TINY_WINDOW_S,
        "max_target_positions": 256,
        "decoder_start_token_id": _START,
        "bos_token_id": _END,
        "eos_token_id": _END,
        "pad_token_id": _END,
        # Wide enough that answers depend on the sound; with the usual 0.02 they repeat one token.
        "init_std": 0.2,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Speech:
    """A checkpoint's conversions: audio to features, text to tokens, and tokens to text."""

    #: Seconds of audio per pass of the encoder, padding included.
    window_s: int
    #: Tokens that precede every answer, and the token that ends it.
    prefix: tuple[int, ...]
    end: int
    #: Tokens that are never generated, and tokens that are never generated first.
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    #: Waveforms -> features, shape ``(waveforms, mel bins, frames)``.
    features: Callable[[Sequence[Waveform]], torch.Tensor]
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]

    def chosen(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest tokens of whole answers, shape ``(samples, tokens)``, padded with the end token.

        Args:
            logits: logits from the first token of the answers on, shape ``(samples, tokens, vocabulary)``.
        """
        allowed = logits.clone()
        allowed[..., list(self.suppressed)] = -torch.inf
        allowed[:, 0, list(self.suppressed_first)] = -torch.inf
        tokens = allowed.argmax(dim=-1)
        return tokens.masked_fill((tokens == self.end).cumsum(dim=-1) > 0, self.end)


def build_speech_model(checkpoint: str) -> nn.Module:
    """Return a model of Whisper's architecture in fp32 and evaluation mode.

    Args:
        checkpoint: name of a tiny model, a folder of safetensors, or a name on the hub.

    Raises:
        TaskError: if it cannot be loaded, or has another architecture.
    """
    with quiet_transformers(), torch.random.fork_rng(devices=[]), explained("model", checkpoint, TINY):
        from transformers import AutoConfig, WhisperConfig, WhisperForConditionalGeneration

        if checkpoint in TINY:
            torch.manual_seed(0)
            tiny: nn.Module = WhisperForConditionalGeneration(WhisperConfig(**TINY[checkpoint]))
            return tiny.eval()
        place = source(checkpoint)
        found = AutoConfig.from_pretrained(place).model_type
        if found != "whisper":
            raise TaskError(
                f"this task needs a model of Whisper's architecture, but checkpoint {checkpoint!r} has the type "
                f"{found!r}; write a task for it"
            )
        model: nn.Module = WhisperForConditionalGeneration.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True
        )
        return model.eval()


@functools.cache
def speech_of(checkpoint: str, language: str) -> Speech:
    """Return a checkpoint's conversions; ``language`` is empty for single-language models.

    Raises:
        TaskError: if it cannot be loaded, or does not support the language.
    """
    with quiet_transformers(), explained("processor", checkpoint, TINY):
        if checkpoint in TINY:
            return _tiny(TINY[checkpoint])
        return _pretrained(source(checkpoint), language)


def normal(text: str) -> str:
    """Return a text in lower case without punctuation, by the normalization of Whisper's authors for any language."""
    with quiet_transformers():
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer
    return str(BasicTextNormalizer()(text)).strip()


def _tiny(sizes: Mapping[str, Any]) -> Speech:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=sizes["num_mel_bins"], chunk_length=_TINY_WINDOW_S
    )
    return Speech(
        window_s=_TINY_WINDOW_S,
        prefix=(_START,),
        end=_END,
        features=functools.partial(_features, extractor),
        encode=lambda text: list(text.encode()),
        decode=lambda tokens: bytes(token for token in tokens if token < _END).decode(errors="replace"),
    )


def _pretrained(place: str, language: str) -> Speech:
    from transformers import GenerationConfig, WhisperProcessor

    # Single-language models have no tokens for languages and tasks.
    spoken: Any = {"language": language, "task": "transcribe"} if language else {}
    processor: Any = WhisperProcessor.from_pretrained(place, **spoken)
    try:
        generation = GenerationConfig.from_pretrained(place)
    except OSError:  # the checkpoint has none
        generation = GenerationConfig()  # type: ignore[no-untyped-call]
    tokenizer, extractor = processor.tokenizer, processor.feature_extractor
    return Speech(
        window_s=extractor.chunk_length,
        prefix=tuple(tokenizer.prefix_tokens),
        end=tokenizer.eos_token_id,
        suppressed=tuple(getattr(generation, "suppress_tokens", None) or ()),
        suppressed_first=tuple(getattr(generation, "begin_suppress_tokens", None) or ()),
        features=functools.partial(_features, extractor),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        decode=lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
    )


def _features(extractor: Any, waveforms: Sequence[Waveform]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(extractor(list(waveforms), sampling_rate=RATE)["input_features"]))
