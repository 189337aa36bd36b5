"""Apply a native map to a model in Python."""

from os import PathLike
from pathlib import Path

from torch import nn

from autotune.map_file import MapFile, read
from search_spaces.errors import MapError
from workers.backends import build_backend
from workers.fingerprint import fingerprint


class NativeMap:
    """A quantization map read from a file, ready to be applied to the model it was made for."""

    def __init__(self, file: MapFile) -> None:
        #: The file's content.
        self.file = file

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the mapped layers of ``model`` by quantized ones, in place, and return it.

        Args:
            model: the full-precision model, on the CPU; all other layers stay as they are.

        Raises:
            MapError: if it is not the model the map was made for; the message names the first difference.
            BackendError: if the map's backend cannot run on this hardware.
        """
        self._check(model)
        quantization = self.file.quantization_map()
        backend = build_backend(self.file.backend)
        for name, choice in quantization.choices.items():
            parent, _, attribute = name.rpartition(".")
            prepared = backend.prepare(model.get_submodule(name), choice, quantization.ranges.get(name))
            setattr(model.get_submodule(parent), attribute, prepared)
        return model.eval()

    def _check(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        for name, layer in self.file.layers.items():
            weight = getattr(modules.get(name), "weight", None)
            if weight is None:
                raise MapError(f"the map is for another model: it has no layer {name!r}")
            if tuple(weight.shape) != layer.weight_shape:
                raise MapError(
                    f"the map is for another model: layer {name!r} has weight shape {tuple(weight.shape)}, "
                    f"but the map was made for {layer.weight_shape}"
                )
        if fingerprint(model) != self.file.model_fingerprint:
            raise MapError(
                "the map is for other weights: layer names and shapes are equal, but the fingerprints differ; "
                "ranges would be wrong, so run a new job on these weights"
            )


def read_map(path: str | PathLike[str]) -> NativeMap:
    """Return the map in the file ``path``.

    Raises:
        MapError: if the file cannot be read or is not a map of this version.
    """
    return NativeMap(read(Path(path)))
