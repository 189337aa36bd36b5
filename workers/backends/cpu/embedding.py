"""Embeddings and embedding bags on CPUs: bf16 and fp16 rows, int8 and int4 rows with per-row scales."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer
from workers.backends.rounding.weights import affine_per_row, fp16, in_pairs


class HalfEmbedding(PackedLayer):
    """Rows in bf16 or fp16; output in fp32."""

    def __init__(self, embedding: nn.Embedding, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(embedding)
        self._weight = _halves(embedding.weight, choice)
        self.packed_bytes = self._weight.nbytes

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows; (...) -> (..., features)."""
        return F.embedding(indices, self._weight).to(torch.float32)


class RowwiseEmbedding(PackedLayer):
    """Rows in asymmetric 8-bit or 4-bit integers with a floating-point scale and offset each."""

    def __init__(self, embedding: nn.Embedding, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(embedding)
        self._rows = _rows(embedding.weight, choice.precision.bits)
        self._sum = _sum_of(choice)
        self._features = embedding.embedding_dim
        self.packed_bytes = self._rows.nbytes

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows; (...) -> (..., features)."""
        # Bags of one row each.
        rows: torch.Tensor = self._sum(self._rows, indices.reshape(-1, 1))
        return rows.view(*indices.shape, self._features)


class _PackedBag(PackedLayer):
    """Base of all kernels: the input forms of bags. Bags with mode ``max`` have no kernel."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__(bag)
        self._is_mean, self._last_ends = bag.mode == "mean", bag.include_last_offset

    def forward(
        self, x: torch.Tensor, offsets: torch.Tensor | None = None, per_sample_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sum or mean of each bag's rows, shape ``(bags, features)``; see ``nn.EmbeddingBag``."""
        if x.dim() == 2:
            if offsets is not None:
                raise ValueError("2-d indices must come without offsets, as in nn.EmbeddingBag")
            offsets = torch.arange(0, x.numel(), x.shape[1])
            per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        assert offsets is not None
        sums = self._sums(x.reshape(-1), offsets, per_sample_weights)
        if not self._is_mean:
            return sums
        bounds = offsets if self._last_ends else torch.cat([offsets, offsets.new_tensor([x.numel()])])
        return sums / bounds.diff().clamp(min=1).unsqueeze(1)

    def _sums(self, indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError


class HalfEmbeddingBag(_PackedBag):
    """Rows in bf16 or fp16; output in fp32."""

    def __init__(self, bag: nn.EmbeddingBag, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(bag)
        self._weight = _halves(bag.weight, choice)
        self.packed_bytes = self._weight.nbytes

    def _sums(self, indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        halves = None if weights is None else weights.to(self._weight.dtype)
        sums = F.embedding_bag(
            *(indices, self._weight, offsets),
            mode="sum",
            per_sample_weights=halves,
            include_last_offset=self._last_ends,
        )
        return sums.to(torch.float32)


class RowwiseEmbeddingBag(_PackedBag):
    """Rows in asymmetric 8-bit or 4-bit integers with a floating-point scale and offset each."""

    def __init__(self, bag: nn.EmbeddingBag, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(bag)
        self._rows = _rows(bag.weight, choice.precision.bits)
        self._sum = _sum_of(choice)
        self.packed_bytes = self._rows.nbytes

    def _sums(self, indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        sums: torch.Tensor = self._sum(
            *(self._rows, indices, offsets),
            per_sample_weights=weights,
            include_last_offset=self._last_ends,
        )
        return sums


def _halves(weight: torch.Tensor, choice: LayerChoice) -> torch.Tensor:
    return weight.detach().to(torch.bfloat16) if choice.precision is Precision.BF16 else fp16(weight)


def _rows(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the rows as the kernels read them: integers, then scale and offset, in fp32 for 8 bits and fp16 for 4."""
    integers, *affine = affine_per_row(weight, bits)
    ends = torch.stack(affine, dim=1).to(torch.float32 if bits == 8 else torch.float16)
    return torch.cat([integers if bits == 8 else in_pairs(integers), ends.view(torch.uint8)], dim=1)


def _sum_of(choice: LayerChoice) -> Callable[..., torch.Tensor]:
    """Return PyTorch's kernel that sums the rows of each bag."""
    operators = torch.ops.quantized
    if choice.precision is Precision.INT8:
        return operators.embedding_bag_byte_rowwise_offsets
    return operators.embedding_bag_4bit_rowwise_offsets
