"""Embeddings on x86 CPUs: bf16, int8 and int4 rows, each with its own scale."""

import torch
import torch.nn.functional as F
from torch import nn

from workers.backends.packed import PackedLayer
from workers.backends.weight_quantization import affine_per_row


class Bf16Embedding(PackedLayer):
    """Rows in bf16; output in fp32."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(embedding)
        self._weight = embedding.weight.to(torch.bfloat16)
        self.packed_bytes = self._weight.nbytes

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows; (...) -> (..., features)."""
        return F.embedding(indices, self._weight).to(torch.float32)


class RowwiseEmbedding(PackedLayer):
    """Rows in asymmetric 8-bit or 4-bit integers with a floating-point scale and offset each."""

    def __init__(self, embedding: nn.Embedding, bits: int) -> None:
        super().__init__(embedding)
        self._packed = torch.ops.quantized.embedding_bag_prepack(affine_per_row(embedding.weight, bits)[0])
        self._lookup = torch.ops.quantized.embedding_byte if bits == 8 else torch.ops.quantized.embedding_4bit
        self._features = embedding.embedding_dim
        # Each packed row ends with its scale and offset, fp32 for 8 bits and fp16 for 4.
        self.packed_bytes = embedding.num_embeddings * (self._features * bits // 8 + (8 if bits == 8 else 4))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows; (...) -> (..., features)."""
        rows: torch.Tensor = self._lookup(self._packed, indices.reshape(-1))
        return rows.view(*indices.shape, self._features)
