"""Unroll ``nn.MultiheadAttention`` into separate linear layers, so that its projections can be quantized.

PyTorch's own module passes the projections' weights to functions, and ``nn.TransformerEncoderLayer`` passes all of its
weights to a single fused function, so neither calls layers that could be replaced.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from workers.model.prepared import describe, slots

#: Largest difference of outputs, relative to the largest output, that the order of summation may cause.
_TOLERANCE = 1e-4


class UnrolledAttention(nn.Module):
    """Computes the same as an ``nn.MultiheadAttention``, with four linear layers that share its weights' memory."""

    batch_first: bool
    dropout: float
    num_heads: int
    #: None makes ``nn.TransformerEncoderLayer`` call its parts instead of the fused function.
    in_proj_bias = None

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        describe(self, fused)
        joined, bias = (fused._parameters[name] for name in ("in_proj_weight", "in_proj_bias"))
        weights = (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight) if joined is None else joined.chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)
        self.train(fused.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("attention needs attn_mask with the hint is_causal, as nn.MultiheadAttention does")
        sequence = 1 if self.batch_first and query.dim() == 3 else 0

        def heads(projected: torch.Tensor) -> torch.Tensor:
            """Return shape ``(samples, heads, tokens, features per head)``, without ``samples`` for unbatched input."""
            return projected.reshape(*projected.shape[:-1], self.num_heads, -1).movedim(sequence, -2)

        q, k, v = heads(self.q_proj(query)), heads(self.k_proj(key)), heads(self.v_proj(value))
        # The hint replaces the mask, which then must be the causal one.
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else _joined_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
            attended = weights @ v
            weights = weights.mean(dim=-3) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=hinted)
        outputs: torch.Tensor = self.out_proj(attended.movedim(-2, sequence).flatten(-2))
        return outputs, weights


def unroll_attention(model: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> dict[str, str]:
    """Unroll attention modules in place where possible; return name -> reason for those that stay fused.

    A module stays fused if unrolling would change the outputs by more than float rounding.

    Args:
        model: a model in evaluation mode.
        run: returns the outputs of the model on an example batch.
    """
    reasons = {name: _refusal(model, name) for name, module in model.named_modules() if _is_fused(module)}
    free = [name for name, reason in reasons.items() if reason is None]
    with torch.no_grad():  # inference mode would create weights that block gradients
        if free:
            reference = run(model)
            if _changes(model, free, run, reference):
                reasons |= {name: _changes(model, [name], run, reference) for name in free}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def unroll_as(model: nn.Module, layers: Collection[str]) -> Callable[[], None]:
    """Unroll in place the attention whose projections are among ``layers``; return a function that undoes it.

    Args:
        model: the model as its task builds it.
        layers: layer names of a map.
    """
    named = (name for name, module in model.named_modules() if _is_fused(module) and f"{name}.q_proj" in layers)
    return _unroll(model, [name for name in named if _refusal(model, name) is None])


def unrolled_layers(model: nn.Module) -> frozenset[str]:
    """Return the names of the layers that the model calls only because its attention was unrolled."""
    names = {module: name for name, module in model.named_modules()}
    called: list[nn.Module] = []
    for module in names:
        if isinstance(module, UnrolledAttention):
            called += module.children()
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.self_attn, UnrolledAttention):
            called += (module.linear1, module.linear2)
    return frozenset(names[layer] for layer in called)


def _joined_mask(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, q: torch.Tensor
) -> torch.Tensor | None:
    """Return the sum of the masks, to add to the scores; it broadcasts to ``(samples, heads, tokens, keys)``."""
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask.reshape(*q.shape[:-1], -1) if attn_mask.dim() == 3 else attn_mask)
    if key_padding_mask is not None:
        masks.append(key_padding_mask[..., None, None, :])
    added = [
        torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        for mask in masks
    ]
    return functools.reduce(torch.add, added) if added else None


def _is_fused(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def _refusal(model: nn.Module, name: str) -> str | None:
    """Return why attention cannot be unrolled, or None if it can."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.MultiheadAttention)
    if not name:
        return "is the whole model; only attention inside a module can be unrolled"
    if type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} overrides forward, and unrolled attention would not run that code"
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return "has forward hooks or a patched forward, which unrolled attention would not run"
    if module.bias_k is not None or module.add_zero_attn:
        return "adds its own keys and values (add_bias_kv or add_zero_attn), which unrolled attention does not"
    if [type(child) for child in module.children()] != [NonDynamicallyQuantizableLinear]:
        return "has child modules that nn.MultiheadAttention lacks, and unrolled attention would not run them"
    own = {id(parameter) for parameter in module.parameters()}
    others = (other for other in model.modules() if other not in (module, module.out_proj))
    if any(id(parameter) in own for other in others for parameter in other.parameters(recurse=False)):
        return "shares a weight with another module; a quantized copy would add memory instead of saving it"
    return None


def _changes(
    model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], torch.Tensor], reference: torch.Tensor
) -> str | None:
    """Unroll the named attention unless that changes the outputs; return why it stays fused, or None if unrolled."""
    nested = _nesting(model)
    take_back = _unroll(model, names)
    try:
        if torch.allclose(run(model), reference, 0.0, _TOLERANCE * float(reference.abs().max()), equal_nan=True):
            return None
        reason = "unrolled, it changes what the model returns for the first batch"
        if nested:
            reason += (
                "; nested tensors set padded positions to zero, so pool over unpadded positions only, or build the "
                "nn.TransformerEncoder with enable_nested_tensor=False"
            )
    except Exception as error:  # the model's own code may read attributes that unrolled attention lacks
        reason = f"the model does not run when it is unrolled: {type(error).__name__}: {error}"
    take_back()
    return reason


def _unroll(model: nn.Module, names: Sequence[str]) -> Callable[[], None]:
    """Unroll the named attention in place; return a function that undoes it."""
    fused = {name: cast("nn.MultiheadAttention", model.get_submodule(name)) for name in names}
    places = slots(model, fused)
    # Only the fused layers accept nested tensors.
    nested = [encoder for encoder in _nesting(model) if set(fused.values()) & set(encoder.modules())]

    def put(modules: Mapping[str, nn.Module], *, nests: bool) -> None:
        for name, module in modules.items():
            for children, attribute in places[name]:
                children[attribute] = module
        for encoder in nested:
            encoder.use_nested_tensor = nests

    put({name: UnrolledAttention(module) for name, module in fused.items()}, nests=False)
    return functools.partial(put, fused, nests=True)


def _nesting(model: nn.Module) -> list[nn.TransformerEncoder]:
    """Return the encoders that convert padded tensors to nested ones."""
    encoders = (module for module in model.modules() if isinstance(module, nn.TransformerEncoder))
    return [encoder for encoder in encoders if encoder.use_nested_tensor]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer
