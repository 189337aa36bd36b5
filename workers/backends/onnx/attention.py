"""Attention as the one operator that ONNX Runtime has for it, instead of products and a softmax."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from workers.backends.onnx.builder import MICROSOFT


@contextmanager
def fused_attention() -> Iterator[None]:
    """Trace calls of ``scaled_dot_product_attention`` as ``MultiHeadAttention`` while the context is open.

    Calls that the operator cannot express are traced as before.
    """
    original = F.scaled_dot_product_attention

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if not _expressible(query, key, value, attn_mask, dropout_p, is_causal):
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return _multi_head_attention(query, key, value, attn_mask, is_causal, scale)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _expressible(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> bool:
    if not query.dim() == key.dim() == value.dim() == 4 or dropout_p:
        return False
    if not query.shape[1] == key.shape[1] == value.shape[1] or query.dtype != torch.float32:
        return False
    if attn_mask is not None:
        return not is_causal and attn_mask.dim() <= query.dim() and attn_mask.dtype in (torch.bool, query.dtype)
    # The operator aligns the last query with the last key, PyTorch the first with the first.
    return not is_causal or bool(query.shape[2] == key.shape[2])


def _multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Return the attention of shape ``(batch, heads, queries, features of values)``, as one node."""
    batch, heads, queries, features = query.shape
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, torch.finfo(query.dtype).min)
        attn_mask = attn_mask[(None,) * (query.dim() - attn_mask.dim())]
        attn_mask = attn_mask.expand(*attn_mask.shape[:2], queries, key.shape[2])
    # Heads lie side by side, as projections leave them, so that ONNX Runtime need not move anything.
    joined = [each.transpose(1, 2).flatten(2) for each in (query, key, value)]
    joined_heads: torch.Tensor = torch.onnx.ops.symbolic(
        f"{MICROSOFT}::MultiHeadAttention",
        (*joined, None, None, attn_mask),
        {
            "num_heads": heads,
            "scale": features**-0.5 if scale is None else float(scale),
            "unidirectional": int(is_causal),
        },
        dtype=query.dtype,
        shape=(batch, queries, heads * value.shape[3]),
    )
    return joined_heads.view(batch, queries, heads, value.shape[3]).transpose(1, 2)
