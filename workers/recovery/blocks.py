"""The blocks of a model whose outputs are reconstructed one after the other, found from its structure."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

#: Least layers in a module that counts as a block if its container repeats it.
_LEAST_LAYERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A module of the model, with the layers that it contains."""

    name: str
    #: Names in the model, in execution order.
    layers: tuple[str, ...]
    #: How often one pass calls it.
    calls: int


def blocks_of(model: nn.Module, layers: Sequence[str], run: Callable[[], object]) -> list[Block]:
    """Return the blocks that contain the layers, in execution order.

    A block is an element of a list that repeats it, such as a layer of a transformer, or what stands beside such lists.
    In a model without repetition each layer is a block, because a whole model has too few targets in calibration data.

    Args:
        model: the model.
        layers: names of all its quantizable layers, in execution order.
        run: runs one pass; modules that it does not call are divided further.
    """
    called = _called(model, run)
    names = _divided(model, "", layers, called) if _repeats_below(model, "", layers) else layers
    found = [
        Block(name=name, layers=tuple(_within(name, layers)), calls=called[name]) for name in names if called[name]
    ]
    order = {layer: position for position, layer in enumerate(layers)}
    return sorted(found, key=lambda block: order[block.layers[0]])


def _divided(module: nn.Module, name: str, layers: Collection[str], called: Counter[str]) -> list[str]:
    """Return the names of the blocks in a module."""
    if not _within(name, layers):
        return []
    if name and called[name] and not _repeats_below(module, name, layers):
        return [name]
    children = [(_joined(name, own), child) for own, child in module.named_children()]
    return [block for own, child in children for block in _divided(child, own, layers, called)]


def _repeats_below(module: nn.Module, name: str, layers: Collection[str]) -> bool:
    """Return whether the module, or one that it contains, is a list that repeats a kind of block."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        kinds = Counter(
            type(child)
            for own, child in module.named_children()
            if len(_within(_joined(name, own), layers)) >= _LEAST_LAYERS
        )
        if any(count > 1 for count in kinds.values()):
            return True
    return any(_repeats_below(child, _joined(name, own), layers) for own, child in module.named_children())


def _within(name: str, layers: Collection[str]) -> list[str]:
    return [layer for layer in layers if not name or layer == name or layer.startswith(f"{name}.")]


def _joined(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def _called(model: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Return module name -> how often one pass calls it."""
    called: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: called.update([name])

    handles = [module.register_forward_pre_hook(count(name)) for name, module in model.named_modules()]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return called
