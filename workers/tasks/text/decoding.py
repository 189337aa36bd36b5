"""Token-by-token generation with a cache, for any decoder of transformers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.device.placement import beside
from workers.measurement import Workload
from workers.task import Timed


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


#: Generates the first token of an answer to what is given, which lies on the model's device.
Begin = Callable[[nn.Module, Any], Answer]


def generating(given: Any, begin: Begin, tokens: int) -> dict[Workload, Timed]:
    """Return prefill (up to the first token), decode (one more token with the cache) and request (a whole answer).

    Decoding starts after the first token, and restarts there once an answer has ``tokens`` tokens.
    """
    return {
        Workload.PREFILL: Timed(prepare=lambda model: beside(model, given), run=begin),
        Workload.DECODE: Timed(
            prepare=lambda model: begin(model, beside(model, given)),
            run=functools.partial(_decode, tokens=tokens),
        ),
        Workload.REQUEST: Timed(
            prepare=lambda model: beside(model, given),
            run=functools.partial(_respond, begin=begin, tokens=tokens),
        ),
    }


def _respond(model: nn.Module, given: Any, *, begin: Begin, tokens: int) -> Answer:
    answer = begin(model, given)
    for _ in range(tokens - 1):
        _decode(model, answer, tokens=tokens)
    return answer


def _decode(model: nn.Module, answer: Answer, *, tokens: int) -> None:
    answer.token = answer.step(model, answer.token, answer.cache)[:, -1:].argmax(dim=-1)
    length = answer.cache.get_seq_length()
    if length >= answer.begin + tokens:
        answer.cache.crop(answer.begin - length)
        answer.token = answer.first
