"""Any module and any inputs, without labels: accuracy is how far the model still says what full precision says."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.tensors import replaced, tensors_in
from workers import quality
from workers.errors import TaskError
from workers.task import Batch, OutputKind, Split, splits

#: Inputs needed: calibration and both splits take one at least.
_LEAST_INPUTS = 3


class GenericTask:
    """A model that is tuned to stay itself; for a task file of a few lines, see ``examples/own_model.py``.

    Every third input calibrates, every third is evaluated on and every third is held out, so that all three see
    the whole of what the inputs are. Accuracy is 1 for full precision: the share of decisions that are its own
    for logits, the mean cosine to its vectors for embeddings.
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
            build: returns the model, equal to the last bit each time.
            inputs: batches that production could send. A tuple is the model's positional arguments, a mapping its
                keyword arguments, anything else its only argument; tensors that have as many rows as the first
                one in the batch have one row a sample. Outputs of all must have one shape but for the samples.
            output_kind: what the outputs are.
            output: returns the outputs, shape ``(samples, ..., features)``, from what the model returns; the
                default takes the first tensor.
            shifted: batches unlike those, as production's may become; none is fine.

        Raises:
            TaskError: if there are fewer than three inputs, or one holds no tensor.
        """
        self.output_kind = output_kind
        self._build, self._output = build, output or first_tensor
        self._inputs, self._shifted = tuple(inputs), tuple(shifted)
        self.has_shifted = bool(self._shifted)
        if len(self._inputs) < _LEAST_INPUTS:
            raise TaskError(
                f"a generic task needs at least {_LEAST_INPUTS} inputs, to calibrate, to evaluate and to hold out, "
                f"but got {len(self._inputs)}; give it more batches, or split the ones it has"
            )
        for batch in (*self._inputs, *self._shifted):
            first_tensor(batch)
        self._references: dict[Split, torch.Tensor] = {}

    def build_model(self) -> nn.Module:
        """Return the model, after the first call has kept what it says of every split."""
        model = self._build().eval()
        if not self._references:
            self._references = {split: quality.outputs(self, model, split) for split in splits(self)}
        return model

    def calibration(self) -> Sequence[Batch]:
        """Return every third input."""
        return self._inputs[::3]

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return every third input, from the second on for the evaluation and from the third on to be held out."""
        if split is Split.SHIFTED:
            return self._shifted
        return self._inputs[1::3] if split is Split.EVALUATION else self._inputs[2::3]

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's outputs, shape ``(samples, ..., features)``."""
        if isinstance(batch, Mapping):
            return self._output(model(**batch))
        return self._output(model(*batch) if isinstance(batch, tuple) else model(batch))

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return how far outputs agree with full precision's, from 0 to 1; nan agrees with nothing."""
        if not self._references:
            self.build_model()
        reference = self._references[split]
        if self.output_kind is OutputKind.LOGITS:
            agreement = (outputs.argmax(dim=-1) == reference.argmax(dim=-1)).double()
        else:
            agreement = F.cosine_similarity(outputs.double(), reference.double(), dim=-1).clamp(min=0.0)
        return float(agreement.masked_fill(outputs.isnan().any(dim=-1), 0.0).mean())

    def latency_batch(self, batch_size: int) -> Batch:
        """Return the first input with so many samples, from its first one again if it has too few."""
        return with_samples(self._inputs[0], batch_size)


def first_tensor(value: Any) -> torch.Tensor:
    """Return the first tensor in nested tuples, lists and mappings.

    Raises:
        TaskError: if there is none.
    """
    found = next(tensors_in(value), None)
    if found is None:
        raise TaskError(
            f"a generic task needs a tensor in every input and output, but found none in a {type(value).__name__}; "
            "put the samples into tensors, and name the outputs by the argument output"
        )
    return found


def with_samples(batch: Batch, count: int) -> Batch:
    """Return a batch with ``count`` samples: those of ``batch``, over and over.

    Tensors with another number of rows than the first one are no samples, and stay as they are.
    """
    samples = len(first_tensor(batch))
    rows = torch.arange(count) % samples

    def chosen(value: torch.Tensor) -> torch.Tensor:
        return value[rows] if value.dim() and len(value) == samples else value

    return replaced(batch, chosen)
