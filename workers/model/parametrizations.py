"""Models without parametrizations: tensors that are computed from others at every call become plain parameters.

Full precision would compute them in every pass, while a quantized layer holds the result; a comparison of the two would
credit quantization with that.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def without_parametrizations(model: nn.Module) -> nn.Module:
    """Return ``model`` with every parametrized tensor replaced by its present value, in place.

    These are tensors of ``nn.utils.parametrize`` (weight norm, spectral norm, orthogonal and own ones), those of the
    older ``nn.utils.weight_norm`` and ``nn.utils.spectral_norm``, and pruned ones. The outputs in evaluation mode stay
    the same.
    """
    found = list(_parametrized(model))
    # All values are read first, because parametrizations may share tensors, which removing one of them changes.
    values = [getattr(module, name).detach().clone() for module, name in found]
    for (module, name), value in zip(found, values, strict=True):
        originals = list(_parametrizations(module)[name].parameters(recurse=False))
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
        if originals:
            trainable = any(original.requires_grad for original in originals)
            setattr(module, name, nn.Parameter(value, requires_grad=trainable))  # recurrent layers keep a list
        else:
            module.register_buffer(name, value)
    for module in model.modules():
        _remove_hooks(module)
    return model


def _parametrized(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield every module that holds a parametrized tensor, with the name of the tensor."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            yield from ((module, name) for name in list(_parametrizations(module)))


def _parametrizations(module: nn.Module) -> nn.ModuleDict:
    """Return name of a tensor -> how it is computed."""
    found = module.parametrizations
    assert isinstance(found, nn.ModuleDict)
    return found


def _remove_hooks(module: nn.Module) -> None:
    """Replace the tensors that hooks of ``module`` compute before every call."""
    with torch.no_grad():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
