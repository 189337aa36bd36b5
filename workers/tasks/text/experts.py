"""Mixture-of-experts blocks with separate linear layers per expert, so that they can be quantized.

transformers stores the experts of a block as two 3-d tensors, which our kernels do not support.
"""

from collections.abc import Mapping

import torch
from torch import nn

from workers.tasks.text.transposed import linear_of


class Experts(nn.ModuleList):
    """The experts of one block, each with its own linear layers; replaces a fused module of transformers."""

    def __init__(self, fused: nn.Module) -> None:
        gates, downs = fused.get_parameter("gate_up_proj"), fused.get_parameter("down_proj")
        activation = fused.get_submodule("act_fn")
        pairs = zip(gates.data, downs.data, strict=True)
        super().__init__(_Expert(gate_up, down, activation) for gate_up, down in pairs)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the chosen experts, shape ``(tokens, features)``.

        Args:
            hidden: shape ``(tokens, features)``.
            chosen: numbers of each token's experts, shape ``(tokens, experts per token)``.
            weights: weights of these experts, same shape.
        """
        outputs = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, place = torch.where(chosen == number)
            if len(tokens):
                # Not in place, because the gradient sketch needs the previous tensor.
                added = expert(hidden[tokens]) * weights[tokens, place, None]
                outputs = outputs.index_add(0, tokens, added.to(outputs.dtype))
        return outputs


class _Expert(nn.Module):
    """A gated feed-forward network."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (linear_of(weight) for weight in gate_up.chunk(2))
        self.down_proj = linear_of(down)
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))
        return outputs


def separate_experts(model: nn.Module) -> None:
    """Replace every fused module of experts with a known layout, in place; others stay unchanged."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_fused(child):
                parent.register_module(name, Experts(child))


#: transformers' attributes of experts with gate above up, without transposition or biases.
_LAYOUT: Mapping[str, bool] = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}


def _is_fused(module: nn.Module) -> bool:
    tensors = {name: tensor.dim() for name, tensor in module.named_parameters(recurse=False)}
    known = all(getattr(module, name, None) is value for name, value in _LAYOUT.items())
    return known and tensors == {"gate_up_proj": 3, "down_proj": 3} and hasattr(module, "act_fn")
