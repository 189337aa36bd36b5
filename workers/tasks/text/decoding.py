"""Writing token after token with a cache, as every decoder of transformers does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(slots=True, kw_only=True)
class Answer:
    """Where decoding stands."""

    #: Returns logits, shape ``(samples, tokens, vocabulary)``, from a model, tokens and the cache, which it adds to.
    step: Callable[[nn.Module, torch.Tensor, Any], torch.Tensor]
    cache: Any
    #: Token to go on from, shape ``(samples, 1)``.
    token: torch.Tensor
    #: The first one, and how many are in the cache before it.
    first: torch.Tensor
    begin: int


def respond(model: nn.Module, given: Any, *, begin: Callable[[nn.Module, Any], Answer], tokens: int) -> Answer:
    """Return a whole answer of ``tokens`` tokens, the first of which ``begin`` writes to what is ``given``."""
    answer = begin(model, given)
    for _ in range(tokens - 1):
        decode(model, answer, most=answer.begin + tokens)
    return answer


def decode(model: nn.Module, answer: Answer, *, most: int) -> None:
    """Write one more token; at ``most`` tokens the answer begins again."""
    answer.token = answer.step(model, answer.token, answer.cache)[:, -1:].argmax(dim=-1)
    length = answer.cache.get_seq_length()
    if length >= most:
        answer.cache.crop(answer.begin - length)
        answer.token = answer.first
