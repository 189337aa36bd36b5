"""The quantized model during recovery: its layers run on real kernels, with what was learned so far."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.model.layer_backend import LayerBackend
from workers.model.prepared import describe, slots
from workers.model.skeleton import sharing_weights
from workers.recovery.fake_layer import can_learn
from workers.recovery.learned import LearnedLayer, without_means


class Student:
    """A copy of a model that runs a map and takes learned layers."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        quantization: QuantizationMap,
        backend: LayerBackend,
        kernels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        """Prepare all layers of the map; see ``recover`` for the arguments."""
        #: The quantized model.
        self.model = sharing_weights(model)
        #: Layer name -> what it learned.
        self.learned: dict[str, LearnedLayer] = {}
        self._shapes = {layer.name: layer.latency_shapes for layer in layers}
        self._quantization, self._backend, self._kernels = quantization, backend, kernels
        self._originals = {name: self.model.get_submodule(name) for name in self._shapes}
        self._slots = slots(self.model, self._originals)
        for name, choice in quantization.choices.items():
            if choice != FULL_PRECISION:
                self._run(name, self._originals[name], quantization.ranges.get(name))

    def learnable(self, names: Iterable[str]) -> dict[str, tuple[LayerChoice, ActivationRange | None]]:
        """Return the layers among ``names`` that can learn, with their choices and ranges."""
        choices, ranges = self._quantization.choices, self._quantization.ranges
        return {
            name: (choices[name], ranges.get(name))
            for name in names
            if name in choices and can_learn(self._originals[name], choices[name])
        }

    def take(self, learned: Mapping[str, LearnedLayer]) -> None:
        """Run layers with what they learned."""
        calibrated, later = self._quantization.ranges, without_means(self._quantization.ranges, learned)
        for name, of_layer in learned.items():
            choice = self._quantization.choices[name]
            self._run(name, of_layer.replacing(self._originals[name], choice, calibrated.get(name)), later.get(name))
        self.learned |= learned

    def drop(self, names: Iterable[str]) -> None:
        """Run layers without what they learned."""
        for name in names:
            del self.learned[name]
            self._run(name, self._originals[name], self._quantization.ranges.get(name))

    def _run(self, name: str, module: nn.Module, calibrated: ActivationRange | None) -> None:
        """Run a layer with its choice, prepared from ``module``."""
        choice = self._quantization.choices[name]
        kernel = self._kernels.get(name, {}).get(choice.name)
        prepared = self._backend.prepare(module, choice, calibrated, self._shapes[name], kernel)
        describe(prepared, module)
        for children, attribute in self._slots[name]:
            children[attribute] = prepared
