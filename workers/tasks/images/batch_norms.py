"""Folding of batch norms into the preceding convolutions, as every runtime does, so that one layer is quantized."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Largest difference of outputs, relative to the largest output, that the order of summation may cause.
_TOLERANCE = 1e-4

#: Types for which folding is known to be exact.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norms(model: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> tuple[str, ...]:
    """Fold batch norms in place where possible; return the names of the folded ones.

    A norm is folded if it reads the output of a convolution, both run once per pass, and the model's outputs stay
    equal within rounding. Layers that a norm itself calls on its result are kept.

    Args:
        model: a model in evaluation mode.
        run: returns the outputs of the model on an example batch.
    """
    with torch.no_grad():  # inference mode would create weights that block gradients
        reference, pairs = _pairs(model, run)
        tolerance = _TOLERANCE * float(reference.abs().max())

        def fold(some: Sequence[tuple[str, str]]) -> bool:
            """Fold the given norms unless outputs change; return whether they were folded."""
            kept: dict[str, Any] = {name: model.get_submodule(name) for pair in some for name in pair}
            for norm, conv in some:
                model.set_submodule(conv, fuse_conv_bn_eval(kept[conv], kept[norm]))
                model.set_submodule(norm, _rest(kept[norm]))
            if torch.allclose(run(model), reference, rtol=0.0, atol=tolerance):
                return True
            for name, module in kept.items():
                model.set_submodule(name, module)
            return False

        if not fold(pairs):
            pairs = [pair for pair in pairs if fold([pair])]
    return tuple(norm for norm, _ in pairs)


def _pairs(model: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Return the outputs, and each batch norm with the convolution whose output it reads."""
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    modules = {name: module for name, module in model.named_modules() if _may_be_folded(module)}

    def keep(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda module, inputs, output: calls.append((name, inputs[0], output))

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        outputs = run(model)
    finally:
        for handle in handles:
            handle.remove()
    once = {name for name, count in Counter(name for name, _, _ in calls).items() if count == 1}
    # The calls keep every tensor alive, so ids are unique.
    writers = {id(output): name for name, _, output in calls if type(modules[name]) in _CONVOLUTIONS}
    read = [(name, writers[id(read)]) for name, read, _ in calls if _is_fixed(modules[name]) and id(read) in writers]
    return outputs, [(norm, conv) for norm, conv in read if {norm, conv} <= once]


def _may_be_folded(module: nn.Module) -> bool:
    """Return whether a module has a known type, or is a norm that calls layers, which comparing outputs verifies."""
    return type(module) in (*_CONVOLUTIONS, *_NORMS) or (isinstance(module, _NORMS) and any(module.children()))


def _is_fixed(module: nn.Module) -> bool:
    """Return whether a module is a batch norm with fixed statistics."""
    return isinstance(module, _NORMS) and not module.training and module.running_mean is not None


def _rest(norm: nn.Module) -> nn.Module:
    """Return the replacement of a folded batch norm: its child layers, as timm's norms call an activation."""
    own = dict(norm.named_children())
    return (nn.Sequential(OrderedDict(own)) if own else nn.Identity()).eval()
