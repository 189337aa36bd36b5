"""Token-by-token generation with a cache, for any decoder of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(slots=True, kw_only=True)
class Answer:
    """State of decoding."""

    #: Takes a model, tokens and the cache, which it extends; returns logits, shape ``(samples, tokens, vocabulary)``.
    step: Callable[[nn.Module, torch.Tensor, Any], torch.Tensor]
    cache: Any
    #: Last generated token, shape ``(samples, 1)``.
    token: torch.Tensor
    #: First generated token, and the number of tokens in the cache before it.
    first: torch.Tensor
    begin: int


def respond(model: nn.Module, given: Any, *, begin: Callable[[nn.Module, Any], Answer], tokens: int) -> Answer:
    """Generate a whole answer of ``tokens`` tokens; ``begin`` generates the first one from ``given``."""
    answer = begin(model, given)
    for _ in range(tokens - 1):
        decode(model, answer, most=answer.begin + tokens)
    return answer


def decode(model: nn.Module, answer: Answer, *, most: int) -> None:
    """Generate one more token; at ``most`` tokens in the cache, restart the answer."""
    answer.token = answer.step(model, answer.token, answer.cache)[:, -1:].argmax(dim=-1)
    length = answer.cache.get_seq_length()
    if length >= most:
        answer.cache.crop(answer.begin - length)
        answer.token = answer.first
