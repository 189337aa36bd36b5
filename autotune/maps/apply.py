"""Apply a native map to a model in Python."""

from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path

from torch import nn

from autotune.maps.map_file import MapFile, read
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.layer import Layer
from workers.backends import build_backend
from workers.device.hardware import kind_of
from workers.errors import BackendError
from workers.model.attention import unroll_as
from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.prepared import PreparedModel


class NativeMap:
    """A quantization map read from a file, ready to be applied to the model it was made for."""

    def __init__(self, file: MapFile) -> None:
        #: The file's content.
        self.file = file

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the mapped layers of ``model`` by quantized ones, in place, and return it.

        Args:
            model: the full-precision model; it is moved to the device of the map's backend, and its other layers stay
                as they are. A compiled model is returned uncompiled; compile the result.

        Raises:
            MapError: if it is not the model the map was made for, or this hardware cannot run a layer's
                choice; the message names the first difference, and the model is as it was.
            BackendError: if the map's backend cannot run on this hardware, or runs no layers of PyTorch models.
        """
        model = uncompiled(model)
        quantization = self.file.quantization_map()
        backend = build_backend(self.file.backend)
        if not backend.runs_modules:
            raise BackendError(
                f"the map is for the backend {backend.name}, which runs no layers of PyTorch models but whole graphs; "
                f"export it with: autotune export --format {backend.name}"
            )
        with ExitStack() as on_error:
            print_of_weights = fingerprint(model)
            on_error.callback(unroll_as(model, self.file.layers))
            layers = self._layers_of(model, print_of_weights)
            prepared = PreparedModel(
                model.to(backend.device),
                layers,
                backend,
                quantization.ranges,
                weight_bits=self.file.weight_bits(),
                kernels=self.file.kernels(kind_of(backend.device)),
            )
            prepared.apply(quantization.names)
            on_error.pop_all()
        return model.eval()

    def unroll(self, model: nn.Module) -> nn.Module:
        """Give ``model`` the map's layers where they are parts of ``nn.MultiheadAttention``, in place, and return it.

        ``apply`` does that by itself. It is for weights from elsewhere, such as those of the export ``torchao``.

        Args:
            model: as the task builds it.
        """
        unroll_as(model, self.file.layers)
        return model

    def _layers_of(self, model: nn.Module, print_of_weights: str) -> list[Layer]:
        """Return the mapped layers as they are in ``model``, which must be the one the map was made for."""
        # Nothing runs here: what a layer's use forbids was found when the map was made.
        found = {layer.name: replace(layer, frozen_reason=None) for layer in discover(model, lambda _: None)}
        for name, layer in self.file.layers.items():
            if name not in found:
                raise MapError(
                    f"the map is for another model: this one has no layer {name!r} to quantize; "
                    f"apply it once, to the full-precision model of task {self.file.task!r}"
                )
            here = found[name]
            if (here.kind, here.weight_shape) != (layer.kind, layer.weight_shape):
                raise MapError(
                    f"the map is for another model: layer {name!r} is {here.kind} with weight shape "
                    f"{here.weight_shape}, but the map was made for {layer.kind} with {layer.weight_shape}"
                )
        if print_of_weights != self.file.model_fingerprint:
            raise MapError(
                "the map is for other weights: layer names and shapes are equal, but the fingerprints differ; "
                "ranges would be wrong, so run a new job on these weights"
            )
        return [replace(found[name], latency_shapes=layer.latency_shapes) for name, layer in self.file.layers.items()]


def read_map(path: str | PathLike[str]) -> NativeMap:
    """Return the map in the file ``path``.

    Raises:
        MapError: if the file cannot be read or is not a map of this version.
    """
    return NativeMap(read(Path(path)))
