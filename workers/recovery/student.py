"""The quantized model during recovery, with what was learned so far."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.model.layer_backend import LayerBackend
from workers.model.prepared import describe, slots
from workers.model.skeleton import sharing_weights
from workers.recovery.fake_layer import FixedLayer, can_learn
from workers.recovery.learned import LearnedLayer


class Student:
    """A copy of a model that runs a map and takes learned layers.

    Layers that can learn compute in floating point what their kernels compute, because some kernels are made for few
    rows, and a runtime of whole graphs has none for single layers; the others run on the backend's kernels.
    """

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
        self._quantization = quantization
        self._originals = {layer.name: self.model.get_submodule(layer.name) for layer in layers}
        self._slots = slots(self.model, self._originals)
        learning = self.learnable(self._originals)
        for layer in layers:
            name, choice = layer.name, quantization.choices.get(layer.name, FULL_PRECISION)
            if name in learning:
                self._fix(name)
            elif choice != FULL_PRECISION:
                calibrated, kernel = quantization.ranges.get(name), kernels.get(name, {}).get(choice.name)
                prepared = backend.prepare(self._originals[name], choice, calibrated, layer.latency_shapes, kernel)
                self._install(name, prepared)

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
        self.learned |= learned
        for name in learned:
            self._fix(name)

    def drop(self, names: Iterable[str]) -> None:
        """Run layers without what they learned."""
        for name in names:
            self.learned.pop(name, None)
            self._fix(name)

    def _fix(self, name: str) -> None:
        choice, calibrated = self._quantization.choices[name], self._quantization.ranges.get(name)
        self._install(name, FixedLayer(self._originals[name], choice, calibrated, self.learned.get(name)))

    def _install(self, name: str, layer: nn.Module) -> None:
        describe(layer, self._originals[name])
        for children, attribute in self._slots[name]:
            children[attribute] = layer
