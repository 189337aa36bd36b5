"""Causal language models evaluated on a text: perplexity, time to first token, time per output token."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.device.placement import beside
from workers.errors import TaskError
from workers.measurement import Workload
from workers.task import OutputKind, Split, Timed, splits
from workers.tasks.checks import extra_packages, read_text, require_integer, require_text
from workers.tasks.text.decoding import Answer, generating
from workers.tasks.text.lee_corpus import background_documents
from workers.tasks.text.models import beginning, build_causal_model, encode, encode_first
from workers.tasks.text.multiple_choice import Windows, read_questions, windows_of

#: Token numbers, shape ``(windows, tokens)``.
Tokens = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal language model on a text; accuracy is the probability of the next token, 1 / perplexity.

    This is the geometric mean over all tokens of the text's windows, so a drop of 1 % means a perplexity 1 % higher.
    Windows alternate between calibration, evaluation and held-out data. With questions, accuracy is the share of
    questions whose correct ending is the likeliest; questions alternate between evaluation and held-out data.
    """

    #: A folder of safetensors, a name on the hub, a GGUF file in either, or ``tiny-llama``, ``tiny-tied-llama``,
    #: ``tiny-mixtral``.
    checkpoint: str = "tiny-llama"
    #: A file of UTF-8 text; empty for the news of the Lee corpus.
    text: str = ""
    #: A file of differently distributed text, as production inputs may become; empty for none.
    shifted_text: str = ""
    #: A jsonl file of multiple-choice questions with the fields ``ctx``, ``endings`` and ``label``; empty for none.
    questions: str = ""
    #: Questions for the shifted data; required if both questions and a shifted text are given.
    shifted_questions: str = ""
    #: Tokens per window of text, and per prompt in latency measurements.
    prompt_tokens: int = 64
    #: Tokens generated after a prompt.
    output_tokens: int = 16
    #: Windows each for calibration, evaluation and held-out data.
    windows: int = 64
    #: Windows per forward pass in evaluation and calibration.
    batch_size: int = 16

    output_kind = OutputKind.LOGITS

    def __post_init__(self) -> None:
        for name in ("checkpoint", "text", "shifted_text", "questions", "shifted_questions"):
            require_text(name, getattr(self, name))
        for name, low in (("prompt_tokens", 2), ("output_tokens", 1), ("windows", 1), ("batch_size", 1)):
            require_integer(name, getattr(self, name), low=low, high=1 << 20)
        if bool(self.shifted_questions) != bool(self.questions and self.shifted_text):
            raise TaskError(
                "task parameter 'shifted_questions' is required with both 'questions' and 'shifted_text', but got "
                f"{self.shifted_questions!r} with {self.questions!r} and {self.shifted_text!r}; give all three, or "
                "omit one of them"
            )

    @property
    def has_shifted(self) -> bool:
        """Whether there is a shifted text."""
        return bool(self.shifted_text)

    def build_model(self) -> nn.Module:
        """Return the checkpoint's model in fp32."""
        for split in splits(self) if self.questions else ():
            self._question_windows(split)  # reports errors in the questions before anything slow runs
        return build_causal_model(self.checkpoint)

    def calibration(self) -> Sequence[Tokens]:
        """Return every third window of the text."""
        return torch.split(self._windows(self.text)[0::3], self.batch_size)

    def evaluation(self, split: Split) -> Sequence[Tokens]:
        """Return every third window of the split's text; evaluation and held-out windows do not overlap."""
        if split is Split.SHIFTED:
            return torch.split(self._windows(self.shifted_text)[1::3], self.batch_size)
        return torch.split(self._windows(self.text)[1 if split is Split.EVALUATION else 2 :: 3], self.batch_size)

    def forward(self, model: nn.Module, batch: Tokens) -> torch.Tensor:
        """Return logits, shape ``(windows, tokens, vocabulary)``."""
        logits: torch.Tensor = model(input_ids=batch, use_cache=False).logits
        return logits

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the scores of the endings of a split's questions, or else the ``log_probabilities`` of its text."""
        if self.questions:
            scored = self._question_windows(split)
            return scored.scores(lambda few: self.forward(model, beside(model, few)), self.batch_size)
        batches = (beside(model, batch) for batch in self.evaluation(split))
        return torch.cat([log_probabilities(self.forward(model, batch), batch) for batch in batches])

    @property
    def forward_and_generate(self) -> Callable[[nn.Module, Tokens], tuple[torch.Tensor, torch.Tensor]] | None:
        """Function that returns a batch's logits and their ``log_probabilities``; None if there are questions."""
        return None if self.questions else self._forward_and_judge

    def _forward_and_judge(self, model: nn.Module, batch: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.forward(model, batch)
        return logits, log_probabilities(logits, batch)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the share of correctly answered questions, if there are questions.

        Otherwise return the geometric mean of the probabilities of the next tokens; 0 for nan logits.
        """
        if self.questions:
            return self._question_windows(split).share_right(outputs)
        return float(outputs.mean().exp().nan_to_num(nan=0.0))

    def latency_batch(self, batch_size: int) -> Tokens:
        """Return calibration windows as prompts, repeated if there are too few."""
        windows = self._windows(self.text)[0::3]
        return windows[torch.arange(batch_size) % len(windows)]

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return prefill, decode and request, for prompts with answers of ``output_tokens`` tokens."""
        return generating(self.latency_batch(batch_size), _begin, self.output_tokens)

    def _windows(self, text: str) -> Tokens:
        return _windows(self.checkpoint, text, self.prompt_tokens, 3 * self.windows)

    def _question_windows(self, split: Split) -> Windows:
        if split is Split.SHIFTED:
            return _question_windows(
                "shifted_questions", self.shifted_questions, 0, 1, self.checkpoint, self.prompt_tokens
            )
        begin = 0 if split is Split.EVALUATION else 1
        return _question_windows("questions", self.questions, begin, 2, self.checkpoint, self.prompt_tokens)


def _begin(model: nn.Module, prompts: Tokens) -> Answer:
    """Return the first tokens of the answers, with the cache of the prompts."""
    from transformers import DynamicCache

    cache = DynamicCache()
    first = _step(model, prompts, cache).argmax(dim=-1)
    return Answer(step=_step, cache=cache, token=first, first=first, begin=prompts.shape[1])


def _step(model: nn.Module, tokens: Tokens, cache: Any) -> torch.Tensor:
    """Return the logits of the token after ``tokens``, shape ``(prompts, 1, vocabulary)``."""
    logits: torch.Tensor = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits


def log_probabilities(logits: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return the float64 log-probability of each token after those before it, shape ``(windows, tokens - 1)``.

    Args:
        logits: shape ``(windows, tokens, vocabulary)``.
        tokens: shape ``(windows, tokens)``.
    """
    # Window by window, because a copy of the logits would double their memory.
    return torch.stack([_following(some[:-1], window[1:]) for some, window in zip(logits, tokens, strict=True)])


def _following(logits: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return the float64 log-probabilities of ``tokens``, shape ``(tokens,)``; logits are ``(tokens, vocabulary)``."""
    peaks = logits.amax(dim=-1, keepdim=True)
    # Exponentials in fp32 are exact enough; only their sum over a large vocabulary is not.
    totals = (logits - peaks).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
    chosen = logits.gather(-1, tokens[:, None])
    return (chosen.double() - peaks.double() - totals.log()).squeeze(-1)


@functools.cache
def _windows(checkpoint: str, text: str, length: int, count: int) -> Tokens:
    """Return the first ``count`` windows of a text, shape ``(count, length)``.

    Raises:
        TaskError: if the file cannot be read, or the text is too short.
    """
    first = beginning(checkpoint)
    own = length - len(first)
    tokens = encode_first(checkpoint, _read(text), count * own)
    if len(tokens) < count * own:
        raise TaskError(
            f"the text has {len(tokens)} tokens, but {count} windows of {length} tokens need {count * own}; "
            "give a longer text, or lower windows or prompt_tokens"
        )
    return torch.cat([first.expand(count, -1), tokens.reshape(count, own)], dim=1)


@functools.cache
def _question_windows(name: str, path: str, begin: int, step: int, checkpoint: str, length: int) -> Windows:
    """Return every ``step``-th question of a file as windows of ``length`` tokens.

    Raises:
        TaskError: if the file cannot be read, has too few questions, or too long ones.
    """
    questions = read_questions(name, path)
    if len(questions) < step:
        raise TaskError(f"{name} needs at least {step} questions, but {path!r} has {len(questions)}; add more")
    return windows_of(questions[begin::step], functools.partial(encode, checkpoint), length)


def _read(text: str) -> str:
    if not text:
        with extra_packages():
            return "\n\n".join(background_documents())
    return read_text("text", text)
