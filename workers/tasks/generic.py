"""Tasks for any module and any inputs; without labels, accuracy is the agreement with full precision."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.tensors import replaced, tensors_in
from workers import quality
from workers.errors import TaskError
from workers.task import Batch, OutputKind, Split, in_evaluation_mode, splits

#: Minimum number of inputs: at least one each for calibration and both splits.
_LEAST_INPUTS = 3


class ModelTask:
    """A model with the batches of every use; accuracy is a metric, or the agreement with full precision.

    Agreement is that of decisions for logits, and the mean cosine for embeddings; full precision scores 1.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        calibration: Sequence[Batch],
        evaluation: Mapping[Split, Sequence[Batch]],
        *,
        metric: Callable[[torch.Tensor, Split], float] | None = None,
        judge: Callable[[nn.Module], float] | None = None,
        output_kind: OutputKind = OutputKind.LOGITS,
        output: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        """Take a model and its batches, in the forms that ``GenericTask`` describes.

        Args:
            build: returns the model, bit-identical on every call.
            calibration: batches that determine activation ranges; the first one is timed.
            evaluation: split -> batches that accuracy and divergence are computed on.
            metric: returns the accuracy of the outputs of all batches of a split; None for agreement.
            judge: returns the accuracy of a model, on data of its own; it replaces ``metric``.
            output_kind: kind of the outputs.
            output: extracts the outputs, shape ``(samples, ..., features)``, from the model's result; the
                default takes the first tensor that is no scalar, since a loss may come first.
        """
        self.output_kind = output_kind
        self._build, self._output, self._metric = build, output or _first_outputs, metric
        self._calibration, self._evaluation = tuple(calibration), dict(evaluation)
        self.has_shifted = bool(self._evaluation.get(Split.SHIFTED))
        if judge is not None:
            self.generate = lambda model, split: torch.tensor([quality.number(judge(model))], dtype=torch.float64)
            self._metric = lambda judged, split: judged.item()
        self._references: dict[Split, torch.Tensor] = {}

    def build_model(self) -> nn.Module:
        """Return the model; without a metric, the first call also records its outputs for every split."""
        model = in_evaluation_mode(self._build())
        if self._metric is None and not self._references:
            self._references = {split: quality.outputs(self, model, split) for split in splits(self)}
        return model

    def calibration(self) -> Sequence[Batch]:
        """Return the batches that determine activation ranges."""
        return self._calibration

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return the batches of a split."""
        return self._evaluation.get(split, ())

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's outputs, shape ``(samples, ..., features)``."""
        if isinstance(batch, Mapping):
            return self._output(model(**batch))
        return self._output(model(*batch) if isinstance(batch, tuple) else model(batch))

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return the metric of outputs, or their agreement with full precision from 0 to 1; nan agrees with nothing."""
        if self._metric is not None:
            return self._metric(outputs, split)
        if not self._references:
            self.build_model()
        reference = self._references[split]
        if self.output_kind is OutputKind.LOGITS:
            agreement = (outputs.argmax(dim=-1) == reference.argmax(dim=-1)).double()
        else:
            agreement = F.cosine_similarity(outputs.double(), reference.double(), dim=-1).clamp(min=0.0)
        return float(agreement.masked_fill(outputs.isnan().any(dim=-1), 0.0).mean())

    def latency_batch(self, batch_size: int) -> Batch:
        """Return the first calibration batch with ``batch_size`` samples, repeating its samples if it has too few."""
        return with_samples(self._calibration[0], batch_size)


class GenericTask(ModelTask):
    """A model that is compared with its own full precision; ``examples/own_model.py`` shows a short task file.

    Inputs alternate between calibration, evaluation and held-out data, so that each part covers the variety of the
    inputs. Accuracy is the agreement with full precision, which scores 1: for logits the share of equal decisions, for
    embeddings the mean cosine.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        inputs: Iterable[Batch],
        *,
        output_kind: OutputKind = OutputKind.LOGITS,
        output: Callable[[Any], torch.Tensor] | None = None,
        shifted: Iterable[Batch] = (),
    ) -> None:
        """Take a model and its inputs.

        Args:
            build: returns the model, bit-identical on every call.
            inputs: batches that production could send. A tuple holds the model's positional arguments, a mapping its
                keyword arguments; anything else is its only argument. Tensors with as many rows as the first
                tensor in the batch have one row per sample. The outputs for all batches must have the same shape,
                apart from the number of samples.
            output_kind: kind of the outputs.
            output: see ``ModelTask``.
            shifted: batches distributed differently, as production inputs may become; may be empty.

        Raises:
            TaskError: if there are fewer than three inputs, or one contains no tensor or no samples.
        """
        given, shifted = tuple(inputs), tuple(shifted)
        if len(given) < _LEAST_INPUTS:
            raise TaskError(
                f"a generic task needs at least {_LEAST_INPUTS} inputs, for calibration, evaluation and held-out data, "
                f"but got {len(given)}; give it more batches, or split the existing ones"
            )
        for number, batch in enumerate((*given, *shifted)):
            samples_of(batch, number)
        evaluation = {Split.EVALUATION: given[1::3], Split.HELD_OUT: given[2::3], Split.SHIFTED: shifted}
        super().__init__(build, given[::3], evaluation, output_kind=output_kind, output=output)


def samples_of(batch: Batch, number: int) -> int:
    """Return the number of samples of the batch with that number.

    Raises:
        TaskError: if it contains no tensor or no samples.
    """
    samples = first_tensor(batch)
    if not samples.dim() or not len(samples):
        raise TaskError(
            f"every input needs at least one sample in the rows of its first tensor, but input {number} has a "
            f"tensor of shape {tuple(samples.shape)} there; leave out empty batches"
        )
    return len(samples)


def first_tensor(value: Any) -> torch.Tensor:
    """Return the first tensor in nested tuples, lists and mappings.

    Raises:
        TaskError: if there is none.
    """
    found = next(tensors_in(value), None)
    if found is None:
        raise TaskError(
            f"a generic task needs a tensor in every input and output, but found none in a {type(value).__name__}; "
            "put the samples into tensors, and extract the outputs with the argument output"
        )
    return found


def _first_outputs(value: Any) -> torch.Tensor:
    """Return the first tensor that is no scalar; a scalar, such as a loss, only if there is no other."""
    found = next((tensor for tensor in tensors_in(value) if tensor.dim()), None)
    return first_tensor(value) if found is None else found


def with_samples(batch: Batch, count: int) -> Batch:
    """Return a batch with ``count`` samples: those of ``batch``, repeated if necessary."""
    return with_rows(batch, torch.arange(count) % len(first_tensor(batch)))


def with_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return a batch with the samples of ``batch`` whose numbers ``rows`` holds.

    Tensors whose number of rows differs from that of the first tensor hold no samples and stay unchanged.
    """
    samples = len(first_tensor(batch))

    def chosen(value: torch.Tensor) -> torch.Tensor:
        return value[rows] if value.dim() and len(value) == samples else value

    return replaced(batch, chosen)
