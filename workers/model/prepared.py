"""A model whose layers are prepared once per choice and then swapped by pointer."""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION, LayerChoice, choice_named
from search_spaces.errors import MapError, unknown
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.device import memory
from workers.model.layer_backend import LayerBackend
from workers.progress import Report, Stage, counted, silent

#: Least and most bytes of prepared layers that are cached if the bound follows the model.
_LEAST_CACHED_BYTES, _MOST_CACHED_BYTES = 1 << 30, 4 << 30
#: After preparing this many bytes of weights, unused memory is returned to the system.
RELEASE_BYTES = 32 << 20


class PreparedModel:
    """The full-precision model with a bounded cache of prepared layers.

    A layer is prepared when a map first uses its choice; after that, changing the map only swaps
    pointers. The full-precision layers are always kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        backend: LayerBackend,
        ranges: Mapping[str, ActivationRange],
        *,
        cache_bytes: int | None = None,
        weight_bits: Mapping[str, int] | None = None,
        kernels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        """Take a model and its layers.

        Args:
            model: the full-precision model.
            layers: its quantizable layers, in execution order.
            backend: prepares the layers.
            ranges: layer name -> calibrated range.
            cache_bytes: bound of the cache of prepared layers, in bytes; None takes the bytes of the model, but at
                least 1 GiB and at most 4 GiB.
            weight_bits: layer name -> bits of int8 weights in int8 products; None uses as many as are exact here.
            kernels: layer name -> choice name -> kernel, where already known; the backend chooses the others.
        """
        #: The model itself, with the layers of the installed map.
        self.model = model
        #: Its layers, in execution order.
        self.layers = tuple(layers)
        self._layers = {layer.name: layer for layer in layers}
        self._backend = backend
        #: Layer name -> calibrated range of its input.
        self.ranges = ranges
        #: Layer name -> bits of int8 weights in int8 products.
        self.weight_bits = weight_bits or {layer.name: backend.int8_weight_bits(layer) for layer in layers}
        self._kernels = kernels
        self._originals = {name: model.get_submodule(name) for name in self._layers}
        self._slots = slots(model, self._originals)
        self._installed = dict.fromkeys(self._layers, FULL_PRECISION.name)
        self._cache: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
        self._cached_bytes = 0
        self._unreleased_bytes = 0
        self._own_bytes, self._other_bytes = _shares(model, self._originals)
        #: Bound of the cache of prepared layers, in bytes; only the layers of the installed map may exceed it.
        self.cache_bytes = self._following_bytes() if cache_bytes is None else cache_bytes

    @property
    def installed(self) -> dict[str, str]:
        """Layer name -> name of the installed choice."""
        return dict(self._installed)

    def apply(self, names: Mapping[str, str]) -> None:
        """Install the map layer name -> choice name; layers it does not name take full precision.

        Layers are swapped one by one, so that the cache stays within its bound during the change. If an error occurs,
        the previous map is installed again.

        Raises:
            MapError: if the map names a layer the model does not have, or a choice the layer cannot take.
            ChoiceError: if a choice is unknown.
            CalibrationError: if a choice needs calibration and its layer has no calibrated range.
        """
        for name in names:
            if name not in self._layers:
                raise MapError(unknown("layer", name, self._layers))
        wanted = {name: names.get(name, FULL_PRECISION.name) for name in self._layers}
        before = self.installed
        try:
            self._install(wanted)
        except BaseException:
            self._install(before)
            raise

    def reset(self) -> None:
        """Install full precision everywhere."""
        self.apply({})

    def weight_bytes(self) -> int:
        """Return the exact bytes of the model with the installed map: parameters, buffers, packed weights."""
        return self._other_bytes + sum(
            self._own_bytes[name]
            if choice == FULL_PRECISION.name
            else self._backend.weight_bytes(self._cache[name, choice])
            for name, choice in self._installed.items()
        )

    def other_bytes(self) -> int:
        """Return the bytes of everything outside the quantizable layers."""
        return self._other_bytes

    def layer_bytes(self) -> dict[str, dict[str, int]]:
        """Return layer name -> choice name -> bytes, for every choice the backend does not refuse.

        A tensor that layers share is counted for the first of them only.
        """
        return {
            name: {
                choice.name: self._own_bytes[name]
                if choice == FULL_PRECISION
                else self._backend.layer_bytes(layer, choice)
                for choice in CHOICES.values()
                if choice.name not in refused
            }
            for name, layer in self._layers.items()
            for refused in [self.refusals(name)]
        }

    def choice(self, name: str, choice: str) -> LayerChoice:
        """Return the choice called ``choice`` with the weight bits of the layer ``name``.

        Raises:
            ChoiceError: if the choice is unknown.
        """
        return choice_named(choice).with_weight_bits(self.weight_bits[name])

    def refusals(self, name: str) -> dict[str, str]:
        """Return choice name -> why the backend refuses it for the layer ``name``; supported choices are absent."""
        reasons = {choice: self._backend.refuses(self._layers[name], self.choice(name, choice)) for choice in CHOICES}
        return {choice: reason for choice, reason in reasons.items() if reason is not None}

    def kernels(self, report: Report = silent) -> dict[str, dict[str, str]]:
        """Return layer name -> choice name -> kernel name, where the backend names kernels; ``report`` gets each layer.

        The backend may time kernels, so the caller holds the device lock.
        """
        found = {}
        for layer, module in counted(list(self._originals.items()), Stage.KERNELS, report):
            refused, shapes = self.refusals(layer), self._layers[layer].latency_shapes
            names = {
                name: self._backend.kernel(module, self.choice(layer, name), shapes, self._kernel(layer, name))
                for name in CHOICES
                if name != FULL_PRECISION.name and name not in refused
            }
            found[layer] = {choice: name for choice, name in names.items() if name is not None}
        return {layer: names for layer, names in found.items() if names}

    def module(self, name: str, choice: str) -> nn.Module:
        """Return one layer prepared with a choice, regardless of the installed map.

        If it does not fit into the cache it is not kept. Probes ask for all layers again and again, and would otherwise
        drop each just before they need it.

        Raises:
            MapError: if the layer cannot take the choice.
        """
        module = self._module(name, choice)
        if self._cached_bytes > self.cache_bytes and choice not in (FULL_PRECISION.name, self._installed[name]):
            self._drop(name, choice)
        return module

    def _install(self, wanted: Mapping[str, str]) -> None:
        for name, choice in wanted.items():
            if self._installed[name] == choice:
                continue
            module = self._module(name, choice)
            for children, attribute in self._slots[name]:
                children[attribute] = module
            self._installed[name] = choice
            self._evict(wanted)
        self._evict()

    def _module(self, name: str, choice: str) -> nn.Module:
        if choice == FULL_PRECISION.name:
            return self._originals[name]
        key = (name, choice)
        if key not in self._cache:
            module = self._prepare(name, choice)
            self._cache[key] = module
            self._cached_bytes += self._backend.weight_bytes(module)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _prepare(self, name: str, choice: str) -> nn.Module:
        layer, wanted = self._layers[name], self.choice(name, choice)
        reason = self._backend.refuses(layer, wanted)
        if reason is not None:
            raise MapError(f"layer {name!r} cannot take {choice}: {reason}")
        prepared = self._backend.prepare(
            self._originals[name], wanted, self.ranges.get(name), layer.latency_shapes, self._kernel(name, choice)
        )
        describe(prepared, self._originals[name])
        self._unreleased_bytes += self._own_bytes[name]
        if self._unreleased_bytes > RELEASE_BYTES:
            memory.release()
            self._unreleased_bytes = 0
        return prepared

    def _following_bytes(self) -> int:
        return min(max(_LEAST_CACHED_BYTES, self.weight_bytes()), _MOST_CACHED_BYTES)

    def _kernel(self, name: str, choice: str) -> str | None:
        return self._kernels.get(name, {}).get(choice)

    def _evict(self, wanted: Mapping[str, str] = MappingProxyType({})) -> None:
        """Drop the least recently used prepared layers until the cache fits; keep those installed or wanted."""
        for name, choice in list(self._cache):
            if self._cached_bytes <= self.cache_bytes:
                return
            if choice not in (self._installed[name], wanted.get(name)):
                self._drop(name, choice)

    def _drop(self, name: str, choice: str) -> None:
        self._cached_bytes -= self._backend.weight_bytes(self._cache.pop((name, choice)))


def describe(replacement: nn.Module, original: nn.Module) -> None:
    """Copy a layer's public attributes to its replacement.

    Some models read the stride or size of a layer, or the type or device of its weight; transformers' CLIP and T5 do.
    """
    for attribute, value in vars(original).items():
        if not attribute.startswith("_") and not hasattr(replacement, attribute):
            setattr(replacement, attribute, value)
    weight = getattr(original, "weight", None)
    if isinstance(weight, torch.Tensor) and not hasattr(replacement, "weight"):
        # One element expanded to the weight's shape. It is nan, to expose models that compute with it.
        replacement.weight = torch.full((1,), torch.nan, dtype=weight.dtype, device=weight.device).expand(weight.shape)


#: A position of a module: its parent's table of children, and the name in it. Writing there has the
#: effect of ``setattr`` on the parent, without its checks.
Slot = tuple[dict[str, nn.Module | None], str]


def slots(model: nn.Module, originals: Mapping[str, nn.Module]) -> dict[str, list[Slot]]:
    """Return layer name -> all its slots; a module may be registered under several names."""
    names = {id(module): name for name, module in originals.items()}
    slots: dict[str, list[Slot]] = defaultdict(list)
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if id(child) in names:
                slots[names[id(child)]].append((parent._modules, attribute))
    return slots


def _shares(model: nn.Module, originals: Mapping[str, nn.Module]) -> tuple[dict[str, int], int]:
    """Return the bytes of each layer that no earlier layer shares, and the bytes outside all layers."""
    counted: set[int] = set()

    def added(module: nn.Module) -> int:
        new = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in counted}
        counted.update(new)
        return sum(tensor.nbytes for tensor in new.values())

    return {name: added(module) for name, module in originals.items()}, added(model)
