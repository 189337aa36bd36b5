"""Applies a native map to a model in Python."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path

from torch import nn

from autotune.maps.learned import install_learned
from autotune.maps.map_file import MapFile, read
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.layer import Layer
from workers.backends import build_backend
from workers.backends.base import Backend
from workers.device.hardware import kind_of
from workers.errors import BackendError
from workers.model.attention import unroll_as
from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.parametrizations import without_parametrizations
from workers.model.prepared import PreparedModel


class NativeMap:
    """A quantization map from a file, ready to be applied to its model."""

    def __init__(self, file: MapFile) -> None:
        #: Content of the file.
        self.file = file

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the mapped layers of ``model`` with quantized ones, in place, and return it.

        Args:
            model: the full-precision model. It is moved to the device of the map's backend; its other layers are not
                changed, except that parametrized tensors, such as those of weight norm, become plain ones. A compiled
                model is returned uncompiled; compile the result.

        Raises:
            MapError: if the map or its learned weights were made for another model, or this hardware cannot run a
                layer's choice. The message names the first difference, and the model is unchanged.
            BackendError: if the map's backend cannot run on this hardware, or cannot run layers of PyTorch models.
        """
        model = uncompiled(model)
        backend = backend_of(self.file)
        with ExitStack() as on_error:
            print_of_weights = fingerprint(model)
            on_error.callback(unroll_as(model, self.file.layers))
            layers = layers_of(self.file, model, print_of_weights)
            without_parametrizations(model)
            on_error.callback(install_learned(model, self.file))
            prepared_for(self.file, model, layers, backend).apply(self.file.quantization_map().names)
            on_error.pop_all()
        return model.eval()

    def unroll(self, model: nn.Module) -> nn.Module:
        """Split each ``nn.MultiheadAttention`` that contains layers of the map, in place, and return ``model``.

        Parametrized tensors become plain ones. ``apply`` does both itself. Call this method to load weights from
        elsewhere, such as those of the ``torchao`` export.

        Args:
            model: the model as the task builds it.
        """
        unroll_as(model, self.file.layers)
        return without_parametrizations(model)


def read_map(path: str | PathLike[str]) -> NativeMap:
    """Return the map in the file ``path``; the learned weights of a recovered map are read from beside it.

    Raises:
        NotFoundError: if there is no such file.
        MapError: if a file cannot be read, or is not a map file of this version or the learned weights of the map.
    """
    return NativeMap(read(Path(path)))


def backend_of(file: MapFile) -> Backend:
    """Return the backend that runs the layers of a map.

    Raises:
        BackendError: if it cannot run on this hardware, or runs whole graphs.
    """
    backend = build_backend(file.backend)
    if not backend.runs_modules:
        raise BackendError(
            f"the map is for the backend {backend.name}, which runs whole graphs, not layers of PyTorch models; "
            f"export it with: autotune export --format {backend.name}"
        )
    return backend


def layers_of(file: MapFile, model: nn.Module, print_of_weights: str) -> list[Layer]:
    """Return the mapped layers of a full-precision model, whose attention is unrolled as in the map.

    Raises:
        MapError: if the map was made for another model, or for weights with another fingerprint.
    """
    # The model does not run here: layers frozen because of their use were found when the map was made.
    found = {layer.name: replace(layer, frozen_reason=None) for layer in discover(model, lambda _: None)}
    for name, layer in file.layers.items():
        if name not in found:
            raise MapError(
                f"the map is for another model: this one has no layer {name!r} to quantize; "
                f"apply it once, to the full-precision model of task {file.task!r}"
            )
        here = found[name]
        if (here.kind, here.weight_shape) != (layer.kind, layer.weight_shape):
            raise MapError(
                f"the map is for another model: layer {name!r} is {here.kind} with weight shape "
                f"{here.weight_shape}, but the map was made for {layer.kind} with {layer.weight_shape}"
            )
    if print_of_weights != file.model_fingerprint:
        raise MapError(
            "the map is for other weights: layer names and shapes are equal, but the fingerprints differ; "
            "ranges would be wrong, so run a new job on these weights"
        )
    return [replace(found[name], latency_shapes=layer.latency_shapes) for name, layer in file.layers.items()]


def prepared_for(
    file: MapFile, model: nn.Module, layers: Sequence[Layer], backend: Backend, *, cache_bytes: int | None = None
) -> PreparedModel:
    """Return the model, on the backend's device, ready for the choices of a map; see ``PreparedModel``."""
    return PreparedModel(
        model.to(backend.device),
        layers,
        backend,
        file.ranges(),
        cache_bytes=cache_bytes,
        weight_bits=file.weight_bits(),
        kernels=file.kernels(kind_of(backend.device)),
    )
