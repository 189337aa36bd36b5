"""Whisper's architecture with its ears and its words: checkpoints of transformers, and a tiny one of random weights."""

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

#: Tokens of the tiny model: the bytes of UTF-8, the end of an answer and its start.
_END, _START = 256, 257
#: Seconds that the tiny model hears at a time, in frames of 20 ms.
_TINY_WINDOW_S = 2
#: Checkpoints that need no file, and what their configuration sets.
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
        # As wide as this, answers differ with the sound; with the usual 0.02 they are one token over and over.
        "init_std": 0.2,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Speech:
    """How a checkpoint turns audio into features, text into tokens, and tokens into text."""

    #: Seconds that one pass of the encoder hears, silence included.
    window_s: int
    #: Tokens that every answer starts behind, and the one that ends it.
    prefix: tuple[int, ...]
    end: int
    #: Tokens that are never written, and those that no answer begins with.
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    #: Waveforms -> features, shape ``(waveforms, mel bins, frames)``.
    features: Callable[[Sequence[Waveform]], torch.Tensor]
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]

    def chosen(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest tokens of whole answers, shape ``(samples, tokens)``; nothing follows the end.

        Args:
            logits: from the first token of the answers on, shape ``(samples, tokens, vocabulary)``.
        """
        allowed = logits.clone()
        allowed[..., list(self.suppressed)] = -torch.inf
        allowed[:, 0, list(self.suppressed_first)] = -torch.inf
        tokens = allowed.argmax(dim=-1)
        return tokens.masked_fill((tokens == self.end).cumsum(dim=-1) > 0, self.end)


def build_speech_model(checkpoint: str) -> nn.Module:
    """Return a model of Whisper's architecture in fp32 and evaluation mode.

    Args:
        checkpoint: a tiny model's name, else a folder of safetensors or the name of one on the hub.

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
                f"this task needs a model of Whisper's architecture, but checkpoint {checkpoint!r} is of the type "
                f"{found!r}; write a task for it"
            )
        model: nn.Module = WhisperForConditionalGeneration.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True
        )
        return model.eval()


@functools.cache
def speech_of(checkpoint: str, language: str) -> Speech:
    """Return what surrounds a checkpoint's model; ``language`` is empty if it knows but one.

    Raises:
        TaskError: if it cannot be loaded, or does not know the language.
    """
    with quiet_transformers(), explained("processor", checkpoint, TINY):
        if checkpoint in TINY:
            return _tiny(TINY[checkpoint])
        return _pretrained(source(checkpoint), language)


def normal(text: str) -> str:
    """Return a text in lower case without punctuation, as Whisper's authors compare texts of any language."""
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

    # A model of one language has no tokens for languages and tasks.
    spoken: Any = {"language": language, "task": "transcribe"} if language else {}
    processor: Any = WhisperProcessor.from_pretrained(place, **spoken)
    try:
        generation = GenerationConfig.from_pretrained(place)
    except OSError:  # written without one
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
