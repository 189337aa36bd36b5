"""Fusion groups: layers that deployed runtimes run as one kernel, so they must share one choice.

Runtimes fuse the query, key and value projections of one attention block, the gate and up
projections of one gated feed-forward block, and the experts of one mixture. A map that gives them
different choices is refused or silently corrupted on load (vllm issues 36312 and 47445).
"""

import re

#: Group name -> last name parts that are fused when they share a parent.
_SIBLINGS: dict[str, frozenset[str]] = {
    "qkv": frozenset({"q", "k", "v", "q_proj", "k_proj", "v_proj", "query", "key", "value", "to_q", "to_k", "to_v"}),
    "gate_up": frozenset({"gate_proj", "up_proj"}),
    "w13": frozenset({"w1", "w3"}),
}
_EXPERT = re.compile(r"\bexperts\.\d+\.")


def fusion_group(name: str) -> str:
    """Return the group of the layer called ``name``; a layer that fuses with nothing is its own group.

    >>> fusion_group("encoder.layer.0.attention.self.query")
    'encoder.layer.0.attention.self.qkv'
    >>> fusion_group("layers.3.experts.7.down_proj")
    'layers.3.experts.*.down_proj'
    """
    name = _EXPERT.sub("experts.*.", name)
    parent, _, last = name.rpartition(".")
    for group, members in _SIBLINGS.items():
        if last in members:
            return f"{parent}.{group}" if parent else group
    return name
