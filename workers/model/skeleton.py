"""Copies of a model that share its weights."""

import copy
from collections.abc import Mapping

from torch import nn


def sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose modules are its own, but whose parameters and buffers are the original's.

    The copy needs almost no memory. Replacing a layer of one does not change the other; changing a weight changes both.
    """
    return with_layers(model, {})


def with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of ``model`` like ``sharing_weights``, in which ``layers``, by name, stand for those of the model.

    The layers themselves are no copies, so that several such models can hold one layer. A layer that the model holds
    under several names, or refers to elsewhere, is replaced everywhere.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared |= {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    return copy.deepcopy(model, shared)
