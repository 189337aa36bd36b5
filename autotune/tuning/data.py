"""The data that a user passes to ``tune``: batches by their use, with the labels of their samples."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from workers.device.placement import moved
from workers.errors import TaskError
from workers.task import Batch, Split
from workers.tasks.generic import samples_of, with_rows

#: From so many batches on, whole batches are dealt out; fewer are split by their samples.
_WHOLE_BATCHES = 12
#: Most samples per batch of those that were split.
_MOST_ROWS = 64
#: Key of the labels in a batch that is a mapping, as in transformers.
_KEY = "labels"

#: What batches are used for, in the order they are dealt out; None is calibration.
_USES: tuple[Split | None, ...] = (Split.EVALUATION, None, Split.EVALUATION, Split.HELD_OUT)
#: The same without held-out data, which the user gives, or which nothing would be computed on.
_USES_WITHOUT = (Split.EVALUATION, None, Split.EVALUATION)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A batch with the labels of its samples: a tensor or a list with one item per sample, or None."""

    batch: Batch
    samples: int
    labels: Any = None

    def rows(self, rows: torch.Tensor) -> "Piece":
        """Return the samples with these numbers."""
        return Piece(with_rows(self.batch, rows), len(rows), _labels_at(self.labels, rows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """Batches by their use."""

    calibration: tuple[Batch, ...]
    evaluation: Mapping[Split, tuple[Batch, ...]]
    #: Split -> labels of all its samples, in order; empty without labels.
    labels: Mapping[Split, Any]
    #: Samples of calibration, evaluation and held-out data.
    counts: tuple[int, int, int]


def read(batches: Any, labels: Any = None, *, paired: bool = False, most: int) -> list[Piece]:
    """Return batches as pieces.

    Args:
        batches: a batch, or an iterable of batches such as a list or a DataLoader. A batch is a tensor, a mapping of
            keyword arguments, or a tuple of positional arguments.
        labels: labels of all samples in order, or one item per batch; None without any.
        paired: whether the last part of each batch, or the key ``labels`` of a mapping, holds its labels.
        most: samples after which no further batch is read.

    Raises:
        TaskError: if there are no batches, or batches and labels do not fit.
    """
    if isinstance(batches, DataLoader) and labels is not None and isinstance(batches.sampler, RandomSampler):
        raise TaskError(
            "labels in order do not fit a DataLoader that shuffles; let it yield pairs of inputs and labels, and leave "
            "out labels, or create it with shuffle=False"
        )
    pieces: list[Piece] = []
    for number, item in enumerate(_batches(batches)):
        batch, own = _parted(item, number) if paired else (item, None)
        batch = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
        labels_of_batch = None if own is None else _as_labels(own)
        pieces.append(Piece(moved(batch, "cpu"), samples_of(batch, number), labels_of_batch))
        if sum(piece.samples for piece in pieces) >= most:
            break
    if not pieces:
        raise TaskError("there are no batches; give at least one")
    if labels is not None:
        return _labelled(pieces, _as_labels(labels), capped=sum(piece.samples for piece in pieces) >= most)
    _check_labels(pieces)
    return pieces


def at_most(pieces: Sequence[Piece], samples: int) -> list[Piece]:
    """Return the first pieces, with ``samples`` samples in all."""
    kept: list[Piece] = []
    for piece in pieces:
        left = samples - sum(each.samples for each in kept)
        if left > 0:
            kept.append(piece if piece.samples <= left else piece.rows(torch.arange(left)))
    return kept


def dealt_out(pieces: Sequence[Piece], held_out: Sequence[Piece] | None) -> Data:
    """Return the pieces by use, dealt out in turn so that each use covers the variety of the data.

    Args:
        pieces: of calibration and evaluation, and of held-out data if ``held_out`` is None.
        held_out: held-out data of the user; empty for none at all.

    Raises:
        TaskError: if there are too few samples for every use.
    """
    uses = _USES if held_out is None else _USES_WITHOUT
    parts = _by_use(pieces, uses)
    if not all(parts.values()):
        count = sum(piece.samples for piece in pieces)
        raise TaskError(
            f"at least {len(uses)} samples are needed, for calibration, evaluation and held-out data, but got {count}; "
            "give more data"
        )
    parts[Split.HELD_OUT] = list(held_out) if held_out is not None else parts[Split.HELD_OUT]
    splits = (Split.EVALUATION, Split.HELD_OUT)
    return Data(
        calibration=tuple(piece.batch for piece in parts[None]),
        evaluation={split: tuple(piece.batch for piece in parts[split]) for split in splits},
        labels={
            split: _joined([piece.labels for piece in parts[split]])
            for split in splits
            if parts[split] and parts[split][0].labels is not None
        },
        counts=tuple(sum(piece.samples for piece in parts[use]) for use in (None, *splits)),  # type: ignore[arg-type]
    )


def _by_use(pieces: Sequence[Piece], uses: Sequence[Split | None]) -> dict[Split | None, list[Piece]]:
    parts: dict[Split | None, list[Piece]] = {use: [] for use in uses}
    if len(pieces) >= _WHOLE_BATCHES:
        for number, piece in enumerate(pieces):
            parts[uses[number % len(uses)]].append(piece)
        return parts
    dealt = 0
    for piece in pieces:
        turns = (dealt + torch.arange(piece.samples)) % len(uses)
        dealt += piece.samples
        for use, part in parts.items():
            wanted = torch.tensor([turn for turn, other in enumerate(uses) if other is use])
            rows = torch.isin(turns, wanted).nonzero().flatten()
            part += [piece.rows(some) for some in torch.split(rows, _MOST_ROWS) if len(some)]
    return parts


def _batches(batches: Any) -> Iterable[Batch]:
    """Yield the batches; those of NumPy become tensors, and lists become tuples of arguments."""
    if isinstance(batches, torch.Tensor | np.ndarray | Mapping | tuple):
        return (_as_batch(batches),)
    if isinstance(batches, Dataset) and not hasattr(batches, "__iter__"):
        raise TaskError("a Dataset yields single samples; wrap it in a DataLoader, which yields batches")
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise TaskError(
            f"batches must be a tensor, a mapping, a tuple of arguments, or a list or DataLoader of these, but got a "
            f"{type(batches).__name__}"
        )
    return map(_as_batch, batches)


def _as_batch(item: Any) -> Batch:
    if isinstance(item, np.ndarray):
        return torch.from_numpy(item)
    if isinstance(item, Mapping):
        return type(item)({key: _as_batch(part) for key, part in item.items()}) if type(item) is dict else item
    if isinstance(item, list) or type(item) is tuple:
        return tuple(map(_as_batch, item))
    return item


def _parted(item: Batch, number: int) -> tuple[Batch, Any]:
    """Return the inputs and the labels of a batch that holds both."""
    if isinstance(item, Mapping) and _KEY in item:
        return {key: part for key, part in item.items() if key != _KEY}, item[_KEY]
    if isinstance(item, tuple) and len(item) > 1:
        return item[:-1], item[-1]
    raise TaskError(
        f"the metric needs labels, but batch {number} is a {type(item).__name__} without any; pass labels=..., or "
        f"batches that are pairs of inputs and labels or have the key {_KEY!r}"
    )


def _as_labels(labels: Any) -> Any:
    if isinstance(labels, torch.Tensor):
        return labels.cpu()
    return torch.from_numpy(labels) if isinstance(labels, np.ndarray) else list(labels)


def _labelled(pieces: list[Piece], labels: Any, *, capped: bool) -> list[Piece]:
    """Return the pieces with their shares of ``labels``."""
    if isinstance(labels, list) and _per_batch(labels, pieces):
        given = map(_as_labels, labels)
        return [dataclasses.replace(piece, labels=own) for piece, own in zip(pieces, given, strict=False)]
    count = sum(piece.samples for piece in pieces)
    if len(labels) != count and not (capped and len(labels) > count):
        raise TaskError(f"labels must have one item per sample or per batch, but there are {len(labels)} for {count}")
    labelled, start = [], 0
    for piece in pieces:
        own = labels[start : start + piece.samples]
        labelled.append(dataclasses.replace(piece, labels=own))
        start += piece.samples
    if isinstance(labels, list) and not isinstance(labels[0], torch.Tensor | np.ndarray | str | Mapping | list | tuple):
        return [dataclasses.replace(piece, labels=torch.tensor(piece.labels)) for piece in labelled]
    return labelled


def _per_batch(labels: Sequence[Any], pieces: Sequence[Piece]) -> bool:
    """Return whether each item holds the labels of a batch."""
    return len(labels) >= len(pieces) and all(
        isinstance(own, torch.Tensor | np.ndarray | list | tuple)
        and (not isinstance(own, torch.Tensor | np.ndarray) or own.ndim > 0)
        and len(own) == piece.samples
        for own, piece in zip(labels, pieces, strict=False)
    )


def _check_labels(pieces: Sequence[Piece]) -> None:
    for number, piece in enumerate(pieces):
        if piece.labels is not None and len(piece.labels) != piece.samples:
            raise TaskError(
                f"batch {number} has {piece.samples} samples, but {len(piece.labels)} labels; every sample needs one"
            )


def _labels_at(labels: Any, rows: torch.Tensor) -> Any:
    if labels is None or isinstance(labels, torch.Tensor):
        return None if labels is None else labels[rows]
    return [labels[row] for row in rows.tolist()]


def _joined(parts: Sequence[Any]) -> Any:
    """Return the labels of all samples: a tensor if they have one shape, otherwise a list."""
    if all(isinstance(part, torch.Tensor) for part in parts) and len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    return [label for part in parts for label in part]
