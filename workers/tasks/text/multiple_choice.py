"""Multiple-choice questions: whether a language model finds the right one of several endings likeliest."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from workers.errors import TaskError
from workers.tasks.checks import read_text

#: Characters shown of a wrong line.
_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A context with several endings, of which one is right."""

    context: str
    endings: tuple[str, ...]
    #: Number of the right ending.
    label: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Questions as a causal model reads them: a window for every ending, behind its context."""

    #: Tokens, shape ``(windows, length)``; 0 behind the ending, where the model does not look.
    tokens: torch.Tensor
    #: Which tokens are the ending's, same shape.
    ending: torch.Tensor
    #: Characters of each ending, shape ``(windows,)``.
    characters: torch.Tensor
    #: How many endings each question has, and the number of its right one, shape ``(questions,)``.
    counts: list[int]
    labels: torch.Tensor

    def scores(self, forward: Callable[[torch.Tensor], torch.Tensor], batch_size: int) -> torch.Tensor:
        """Return the log-likelihood of each ending, shape ``(questions, most endings)``; -inf where there is none.

        It is divided by the ending's characters, as for ``acc_norm`` of EleutherAI's lm-evaluation-harness.

        Args:
            forward: returns the logits of some windows, shape ``(windows, length, vocabulary)``.
            batch_size: windows at a time.
        """
        outputs = (logits for few in torch.split(self.tokens, batch_size) for logits in forward(few).cpu())
        each = [
            -F.cross_entropy(logits[:-1][ending[1:]].double(), tokens[ending], reduction="sum")
            for logits, tokens, ending in zip(outputs, self.tokens, self.ending, strict=True)
        ]
        of_questions = torch.split(torch.stack(each) / self.characters, self.counts)
        return pad_sequence(list(of_questions), batch_first=True, padding_value=-torch.inf)

    def share_right(self, scores: torch.Tensor) -> float:
        """Return the share of questions whose right ending scores highest; nan is no score."""
        best = scores.masked_fill(scores.isnan(), -torch.inf).max(dim=1)
        return float(((best.indices == self.labels) & best.values.isfinite()).double().mean())


def read_questions(name: str, path: str) -> list[Question]:
    """Return the questions in a jsonl file, which has HellaSwag's fields ``ctx``, ``endings`` and ``label``.

    Args:
        name: of the task's parameter, for messages.
        path: the file.

    Raises:
        TaskError: if it cannot be read, or a line is no such question.
    """
    lines = read_text(name, path, kind="a jsonl file").splitlines()
    return [_question(line, f"line {number} of the {name} {path!r}") for number, line in enumerate(lines, start=1)]


def windows_of(questions: Sequence[Question], encode: Callable[[str], torch.Tensor], length: int) -> Windows:
    """Return the windows of questions, context and ending joined by a space.

    Args:
        questions: at least one.
        encode: returns the tokens of a text, shape ``(tokens,)``.
        length: of a window, in tokens.

    Raises:
        TaskError: if a question is longer.
    """
    tokens = torch.zeros(sum(len(question.endings) for question in questions), length, dtype=torch.long)
    ending = torch.zeros_like(tokens, dtype=torch.bool)
    texts = [(question.context, text) for question in questions for text in question.endings]
    for row, (context, text) in enumerate(texts):
        # Together, as a tokenizer may join what meets.
        both, begin = encode(f"{context} {text}"), len(encode(context))
        if len(both) > length:
            raise TaskError(
                f"the question {_shown(context)} has {len(both)} tokens with an ending, but prompt_tokens is {length}; "
                "raise it, or take the question out"
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
        # One ending could not be wrong, and nothing comes before the first token of an empty context.
        if all(isinstance(text, str) and text for text in (context, *endings)) and 0 <= label < len(endings) > 1:
            return Question(context=context, endings=endings, label=label)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise TaskError(
        f"{where} must be an object with the text 'ctx', a list of two or more texts 'endings', and 'label', the "
        f"number of the right one from 0 on, but got {_shown(line)}"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
