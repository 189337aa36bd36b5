"""Copies of a model that share its weights."""

import copy

from torch import nn


def sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose modules are its own, but whose parameters and buffers are the original's.

    The copy needs almost no memory. Replacing a layer of one does not change the other; changing a weight changes both.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
