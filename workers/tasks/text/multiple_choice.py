"""Multiple-choice questions: whether a language model assigns the correct ending the highest likelihood."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from workers.errors import TaskError
from workers.tasks.checks import read_text

#: Characters of an invalid line to show.
_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A context with several endings, one of which is correct."""

    context: str
    endings: tuple[str, ...]
    #: Number of the correct ending.
    label: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Questions in the form that a causal model reads: one window per ending, with the context before it."""

    #: Tokens, shape ``(windows, length)``; 0 after the ending, which a causal model ignores.
    tokens: torch.Tensor
    #: Mask of the ending's tokens, same shape.
    ending: torch.Tensor
    #: Number of characters of each ending, shape ``(windows,)``.
    characters: torch.Tensor
    #: Number of endings of each question, and number of its correct one, shape ``(questions,)``.
    counts: list[int]
    labels: torch.Tensor

    def scores(self, forward: Callable[[torch.Tensor], torch.Tensor], batch_size: int) -> torch.Tensor:
        """Return the log-likelihood of each ending, shape ``(questions, most endings)``, padded with -inf.

        It is divided by the ending's number of characters, as for ``acc_norm`` of EleutherAI's lm-evaluation-harness.

        Args:
            forward: returns the logits of windows, shape ``(windows, length, vocabulary)``.
            batch_size: windows per call of ``forward``.
        """
        outputs = (logits for few in torch.split(self.tokens, batch_size) for logits in forward(few).cpu())
        each = [
            -F.cross_entropy(logits[:-1][ending[1:]].double(), tokens[ending], reduction="sum")
            for logits, tokens, ending in zip(outputs, self.tokens, self.ending, strict=True)
        ]
        of_questions = torch.split(torch.stack(each) / self.characters, self.counts)
        return pad_sequence(list(of_questions), batch_first=True, padding_value=-torch.inf)

    def share_right(self, scores: torch.Tensor) -> float:
        """Return the share of questions whose correct ending scores highest; nan never scores highest."""
        best = scores.masked_fill(scores.isnan(), -torch.inf).max(dim=1)
        return float(((best.indices == self.labels) & best.values.isfinite()).double().mean())


def read_questions(name: str, path: str) -> list[Question]:
    """Return the questions in a jsonl file with HellaSwag's fields ``ctx``, ``endings`` and ``label``.

    Args:
        name: name of the task parameter, for error messages.
        path: path of the file.

    Raises:
        TaskError: if the file cannot be read, or a line is not a valid question.
    """
    lines = read_text(name, path, kind="a jsonl file").splitlines()
    return [_question(line, f"line {number} of the {name} {path!r}") for number, line in enumerate(lines, start=1)]


def windows_of(questions: Sequence[Question], encode: Callable[[str], torch.Tensor], length: int) -> Windows:
    """Return the windows of questions, with context and ending joined by a space.

    Args:
        questions: at least one question.
        encode: returns the tokens of a text, shape ``(tokens,)``.
        length: number of tokens per window.

    Raises:
        TaskError: if a question with an ending is longer than a window.
    """
    tokens = torch.zeros(sum(len(question.endings) for question in questions), length, dtype=torch.long)
    ending = torch.zeros_like(tokens, dtype=torch.bool)
    texts = [(question.context, text) for question in questions for text in question.endings]
    for row, (context, text) in enumerate(texts):
        # Encode them together, because a tokenizer may merge characters across the boundary.
        both, begin = encode(f"{context} {text}"), len(encode(context))
        if len(both) > length:
            raise TaskError(
                f"the question {_shown(context)} has {len(both)} tokens with an ending, but prompt_tokens is {length}; "
                "raise it, or remove the question"
            )
        tokens[row, : len(both)] = both
        ending[row, begin : len(both)] = True
    return Windows(
        tokens=tokens,
        ending=ending,
        characters=torch.tensor([float(len(text)) for _, text in texts], dtype=torch.float64),
        counts=[len(question.endings) for question in questions],
        labels=torch.tensor([question.label for question in questions]),
    )


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
        context, endings, label = row["ctx"].rstrip(), tuple(row["endings"]), int(str(row["label"]))
        # A single ending is always correct, and with an empty context nothing precedes the ending's first token.
        if all(isinstance(text, str) and text for text in (context, *endings)) and 0 <= label < len(endings) > 1:
            return Question(context=context, endings=endings, label=label)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise TaskError(
        f"{where} must be an object with the text 'ctx', a list of two or more texts 'endings', and 'label', the "
        f"number of the correct ending counted from 0, but got {_shown(line)}"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
