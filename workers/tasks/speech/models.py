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
#: Tokens of OpenAI's English-only checkpoints; multilingual ones have more, and other vocabularies say nothing.
_ENGLISH_VOCABULARY = 51_864
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
        "begin_suppress_tokens": None,
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
    #: Maximum number of the decoder's tokens, the prefix included.
    most_tokens: int
    #: Tokens that are never generated, and tokens that are never generated first.
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    #: Waveforms -> features, shape ``(waveforms, mel bins, frames)``.
    features: Callable[[Sequence[Waveform]], torch.Tensor]
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]

    def likeliest(self, logits: torch.Tensor, *, first: bool) -> torch.Tensor:
        """Return the likeliest allowed token of each answer, shape ``(samples,)``.

        Args:
            logits: logits of one token per answer, shape ``(samples, vocabulary)``.
            first: whether it is the first token of the answers.
        """
        banned = [*self.suppressed, *(self.suppressed_first if first else ())]
        places = torch.tensor(banned, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, places, -torch.inf).argmax(dim=-1)

    def chosen(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest tokens of whole answers, shape ``(samples, tokens)``, padded with the end token.

        Args:
            logits: logits from the first token of the answers on, shape ``(samples, tokens, vocabulary)``.
        """
        each = [self.likeliest(of_token, first=number == 0) for number, of_token in enumerate(logits.unbind(1))]
        tokens = torch.stack(each, dim=1)
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
    """Return a checkpoint's conversions; ``language`` is empty for that of the checkpoint.

    Raises:
        TaskError: if it cannot be loaded, does not support the language, or needs one.
    """
    with quiet_transformers(), explained("processor", checkpoint, TINY):
        if checkpoint not in TINY:
            return _pretrained(checkpoint, language)
        if language:
            raise _one_language(checkpoint, language)
        return _tiny(TINY[checkpoint])


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
        most_tokens=sizes["max_target_positions"],
        features=functools.partial(_features, extractor),
        encode=lambda text: list(text.encode()),
        decode=lambda tokens: bytes(token for token in tokens if token < _END).decode(errors="replace"),
    )


def _pretrained(checkpoint: str, language: str) -> Speech:
    from transformers import AutoConfig, GenerationConfig, WhisperProcessor

    place = source(checkpoint)
    config: Any = AutoConfig.from_pretrained(place)
    try:
        generation: Any = GenerationConfig.from_pretrained(place)
    except OSError:  # old checkpoints keep it in their configuration
        generation = GenerationConfig.from_model_config(config)
    if language and _multilingual(generation, config) is False:
        raise _one_language(checkpoint, language)
    # Tuned checkpoints may state their language, by its name or its token.
    spoken = language or (getattr(generation, "language", None) or "").strip("<|>") or None
    # None overrides what the tokenizer's files say, which generation ignores.
    processor: Any = WhisperProcessor.from_pretrained(
        place, language=spoken, task="transcribe" if spoken else None, predict_timestamps=False
    )
    tokenizer, extractor = processor.tokenizer, processor.feature_extractor
    return Speech(
        window_s=extractor.chunk_length,
        prefix=_prefix(checkpoint, tokenizer, generation, config),
        end=tokenizer.eos_token_id,
        most_tokens=config.max_target_positions,
        # Whisper's default configuration names tokens that small vocabularies lack.
        suppressed=tuple(token for token in generation.suppress_tokens or () if token < config.vocab_size),
        suppressed_first=tuple(token for token in generation.begin_suppress_tokens or () if token < config.vocab_size),
        features=functools.partial(_features, extractor),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        decode=lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
    )


def _prefix(checkpoint: str, tokenizer: Any, generation: Any, config: Any) -> tuple[int, ...]:
    """Return the tokens before every answer, as transformers' ``generate`` chooses them without timestamps."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    prefix = tuple(tokenizer.prefix_tokens)
    if tokenizer.language is not None:
        # The tokenizer counts languages from the start token, also those that came after the checkpoint.
        token = f"<|{TO_LANGUAGE_CODE.get(tokenizer.language, tokenizer.language)}|>"
        if tokenizer.convert_ids_to_tokens(prefix[1]) != token:
            raise TaskError(f"checkpoint {checkpoint!r} has no token {token}; give a language that it knows")
        return prefix
    forced = getattr(generation, "forced_decoder_ids", None) or getattr(config, "forced_decoder_ids", None) or ()
    known = [token for _, token in sorted(forced) if token is not None]
    if known and len(known) == len(forced):
        without_timestamps = prefix[-1:] if known[-1] != prefix[-1] else ()
        return (prefix[0], *known, *without_timestamps)
    if _multilingual(generation, config):
        raise TaskError(
            f"checkpoint {checkpoint!r} writes several languages, and guesses one for each chunk unless it is told; "
            "give the language of the audio as the parameter language, such as en"
        )
    return prefix


def _multilingual(generation: Any, config: Any) -> bool | None:
    """Return whether a checkpoint writes several languages; None if it does not say so."""
    stated: bool | None = getattr(generation, "is_multilingual", None)
    if stated is None and config.vocab_size >= _ENGLISH_VOCABULARY:
        return bool(config.vocab_size > _ENGLISH_VOCABULARY)
    return stated


def _one_language(checkpoint: str, language: str) -> TaskError:
    return TaskError(
        f"checkpoint {checkpoint!r} writes one language only and has no prompt for {language!r}; leave the parameter "
        "language empty, or give a multilingual checkpoint"
    )


def _features(extractor: Any, waveforms: Sequence[Waveform]) -> torch.Tensor:
    """Return the features of waveforms one by one, because the spectra of all would take many times their memory."""
    each = [np.asarray(extractor(waveform, sampling_rate=RATE)["input_features"]) for waveform in waveforms]
    return torch.from_numpy(np.concatenate(each))
