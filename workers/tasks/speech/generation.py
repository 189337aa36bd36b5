"""Greedy generation of the answers to speech, with a model's cache or without one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from workers.tasks.speech.models import Speech
from workers.tasks.text.decoding import Answer


def decoder_inputs(prefix: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """Return the decoder's input to generate ``tokens``: the prefix, then all tokens but the last."""
    return torch.cat([torch.tensor(prefix, device=tokens.device).expand(len(tokens), -1), tokens[:, :-1]], dim=1)


def has_cache(model: nn.Module) -> bool:
    """Return whether ``model`` takes a cache: models of transformers do, graphs and programs made from them do not."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def begin(
    model: nn.Module, features: torch.Tensor, *, prefix: torch.Tensor, encoded: torch.Tensor | None = None
) -> tuple[torch.Tensor, Answer]:
    """Return the logits and the likeliest value of the first token, with the cache of audio and prefix.

    Args:
        model: a model with a cache.
        features: features of the audio, shape ``(chunks, mel bins, frames)``.
        prefix: tokens before the answers, shape ``(chunks, tokens)``.
        encoded: what the encoder returned for ``features``, shape ``(chunks, positions, width)``; None to encode them.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    prefix = prefix.to(features.device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    audio = {"input_features": features} if encoded is None else {"encoder_outputs": (encoded,)}
    outputs = model(**audio, decoder_input_ids=prefix, past_key_values=cache, use_cache=True)
    hidden = (outputs.encoder_last_hidden_state,)

    def step(model: nn.Module, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = model(
            encoder_outputs=hidden, decoder_input_ids=tokens, past_key_values=cache, use_cache=True
        ).logits
        return logits

    logits = outputs.logits[:, -1:]
    first = logits.argmax(dim=-1)
    return logits, Answer(step=step, cache=cache, token=first, first=first, begin=prefix.shape[1])


def with_cache(
    model: nn.Module, features: torch.Tensor, speech: Speech, count: int, *, encoded: torch.Tensor | None = None
) -> torch.Tensor:
    """Return at most ``count`` tokens per chunk, shape ``(chunks, count)``, padded with the end token.

    The audio is encoded at most once, and generation stops when all answers have ended.

    Args:
        model: a model with a cache.
        features: features of the audio, shape ``(chunks, mel bins, frames)``.
        speech: the checkpoint's conversions.
        count: maximum number of tokens.
        encoded: as for ``begin``.
    """
    prefix = torch.tensor(speech.prefix).expand(len(features), -1)
    logits, answer = begin(model, features, prefix=prefix, encoded=encoded)
    tokens = speech.likeliest(logits[:, -1], first=True).unsqueeze(1)
    while tokens.shape[1] < count and not (ended := tokens[:, -1] == speech.end).all():
        logits = answer.step(model, tokens[:, -1:], answer.cache)
        token = speech.likeliest(logits[:, -1], first=False).masked_fill(ended, speech.end)
        tokens = torch.cat([tokens, token.unsqueeze(1)], dim=1)
    return F.pad(tokens, (0, count - tokens.shape[1]), value=speech.end)


def in_parallel(
    run: Callable[[dict[str, torch.Tensor]], torch.Tensor], batch: dict[str, torch.Tensor], speech: Speech
) -> torch.Tensor:
    """Return the tokens after the prefix, shape ``(chunks, tokens)``, padded with the end token.

    Each pass recomputes all tokens of a draft from the tokens before them, and answers that no longer change are left
    out of the next pass. The result equals token-by-token generation, with fewer passes and without a cache (Santilli
    et al., "Accelerating transformer inference for translation via parallel decoding", 2023).

    Args:
        run: a batch -> logits of the answers, shape ``(chunks, tokens, vocabulary)``.
        batch: features of the audio, and the decoder's input with the first draft.
        speech: the checkpoint's conversions.
    """
    draft = batch["decoder_input_ids"]
    tokens = torch.full_like(draft[:, len(speech.prefix) - 1 :], speech.end)
    left = torch.arange(len(draft), device=draft.device)
    for _ in range(tokens.shape[1]):  # each pass fixes at least one more token
        few = {**{name: value[left] for name, value in batch.items()}, "decoder_input_ids": draft[left]}
        tokens[left] = speech.chosen(run(few))
        draft = decoder_inputs(speech.prefix, tokens)
        left = left[(draft[left] != few["decoder_input_ids"]).any(dim=1)]
        if not len(left):
            break
    return tokens
