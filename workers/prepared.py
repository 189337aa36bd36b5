"""A model whose layers are prepared once for each choice and then swapped by pointer."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends.base import Backend

#: Bytes of prepared layers kept beside the installed ones.
CACHE_BYTES = 4 << 30


class PreparedModel:
    """The full-precision model with a bounded cache of prepared layers.

    A layer is prepared the first time a map asks for its choice; from then on changing the map
    changes pointers. The full-precision layers are always kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        backend: Backend,
        ranges: Mapping[str, ActivationRange],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        #: The model itself; what its layers are is the last map applied.
        self.model = model
        self._layers = {layer.name: layer for layer in layers}
        self._backend = backend
        self._ranges = ranges
        self._originals = {name: model.get_submodule(name) for name in self._layers}
        self._slots = {name: _slot(model, name) for name in self._layers}
        self._installed = dict.fromkeys(self._layers, FULL_PRECISION.name)
        self._cache: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes
        quantizable = {id(tensor) for module in self._originals.values() for tensor in _tensors(module)}
        self._other_bytes = sum(t.nbytes for t in _tensors(model) if id(t) not in quantizable)

    def apply(self, names: Mapping[str, str]) -> None:
        """Install the map layer name -> choice name.

        Every layer is prepared before the first one is swapped, so an error leaves the model as it was.
        """
        changes = {layer: choice for layer, choice in names.items() if self._installed[layer] != choice}
        prepared = {layer: self._prepared(layer, choice) for layer, choice in changes.items()}
        for layer, module in prepared.items():
            self._slots[layer][self._layers[layer].name.rpartition(".")[2]] = module
        self._installed |= changes
        self._evict()

    def reset(self) -> None:
        """Install full precision everywhere."""
        self.apply(dict.fromkeys(self._layers, FULL_PRECISION.name))

    def weight_bytes(self) -> int:
        """Return the exact bytes of the model as it is installed: parameters, buffers, packed weights."""
        if all(choice == FULL_PRECISION.name for choice in self._installed.values()):
            return sum(tensor.nbytes for tensor in _tensors(self.model))
        return self._other_bytes + sum(
            self._backend.weight_bytes(self._prepared(layer, choice)) for layer, choice in self._installed.items()
        )

    def other_bytes(self) -> int:
        """Return the bytes of everything outside the quantizable layers."""
        return self._other_bytes

    def layer_bytes(self) -> dict[str, dict[str, int]]:
        """Return layer name -> choice name -> bytes, for every choice the backend does not refuse."""
        return {
            name: {
                choice.name: self._backend.weight_bytes(
                    self._backend.prepare(self._originals[name], choice, self._ranges.get(name))
                )
                for choice in CHOICES.values()
                if self._backend.refuses(layer, choice) is None
            }
            for name, layer in self._layers.items()
        }

    def _prepared(self, layer: str, choice: str) -> nn.Module:
        if choice == FULL_PRECISION.name:
            return self._originals[layer]
        key = (layer, choice)
        if key not in self._cache:
            module = self._backend.prepare(self._originals[layer], CHOICES[choice], self._ranges.get(layer))
            self._cache[key] = module
            self._cached_bytes += self._backend.weight_bytes(module)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _evict(self) -> None:
        """Drop the prepared layers used longest ago until the cache fits; never one that is installed."""
        for layer, choice in list(self._cache):
            if self._cached_bytes <= self._cache_bytes:
                return
            if self._installed[layer] != choice:
                self._cached_bytes -= self._backend.weight_bytes(self._cache.pop((layer, choice)))


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _slot(model: nn.Module, name: str) -> dict[str, nn.Module | None]:
    """Return the parent's table of children: writing there is what ``setattr`` does, without its checks."""
    return model.get_submodule(name.rpartition(".")[0])._modules
