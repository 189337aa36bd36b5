"""A front deployed whole: one model per map, all of them in the memory of little more than one."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path

from torch import nn

from autotune.maps.apply import backend_of, layers_of, prepared_for
from autotune.maps.learned import install_learned
from autotune.maps.map_file import MapFile
from autotune.serving.bundle import BundledMap, BundleFile, read
from search_spaces.errors import MapError, unknown
from search_spaces.layer import Layer
from workers.backends.base import Backend
from workers.backends.packed import PackedLayer, union_bytes
from workers.model.attention import unroll_as
from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.parametrizations import without_parametrizations
from workers.model.skeleton import with_layers

#: (layer name, how the map file describes it, hash of the learned weights) -> prepared layer.
_Prepared = dict[tuple[str, object, str], nn.Module]


class Governed(Mapping[int, nn.Module]):
    """The models of a bundle by the numbers of their maps.

    Each is a module of its own that shares every prepared layer and every other tensor with the others. Threads may run
    several at once, as none writes to what they share. They are for inference; changing a weight changes it in all.
    """

    def __init__(self, bundle: BundleFile, models: Mapping[int, nn.Module], layers: Iterable[nn.Module]) -> None:
        """Take the models of a bundle and the prepared layers that they share; ``Bundle.govern`` makes them."""
        self._bundle, self._models = bundle, dict(models)
        self._packed = {layer for layer in layers if isinstance(layer, PackedLayer)}

    @property
    def maps(self) -> Mapping[int, BundledMap]:
        """Number -> label and measured figures of the map."""
        return self._bundle.maps

    @property
    def recommended(self) -> int:
        """Number of the recommended map."""
        return self._bundle.recommended

    def __getitem__(self, number: int) -> nn.Module:
        """Return the model of a map, in evaluation mode.

        Raises:
            KeyError: if the bundle has no such map; the message names those that it has.
        """
        try:
            return self._models[number]
        except KeyError:
            raise KeyError(unknown("map", str(number), map(str, self._models))) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def flipped(self, number: int, layers: Iterable[str]) -> nn.Module:
        """Return the model of a map with some static int8 layers turned dynamic, in evaluation mode.

        It adds no tensor: these layers keep their integers, biases and smoothing factors, and take their ranges from
        each input.

        Args:
            number: the map.
            layers: names of the layers.

        Raises:
            KeyError: if the bundle has no such map.
            MapError: if a layer of the map is not static int8 here.
        """
        model = self[number]
        packed = {name: module for name, module in model.named_modules() if module in self._packed}
        turned = {name: layer.dynamic() for name, layer in packed.items()}
        static = {name: layer for name, layer in turned.items() if layer is not None}
        names = set(layers)
        wrong = sorted(names - static.keys())
        if wrong:
            raise MapError(
                f"only static int8 layers can turn dynamic, but {wrong[0]!r} of map {number} is none; those are: "
                f"{', '.join(static) or 'none'}"
            )
        return with_layers(model, packed | {name: static[name] for name in names})

    def weight_bytes(self) -> int:
        """Return the exact bytes of all weights of all models: parameters, buffers, packed weights."""
        tensors = {
            id(tensor): tensor.nbytes
            for model in self._models.values()
            for tensor in (*model.parameters(), *model.buffers())
        }
        return union_bytes(self._packed) + sum(tensors.values())


class Bundle:
    """A bundle that was read from its folder."""

    def __init__(self, file: BundleFile, maps: Mapping[int, MapFile]) -> None:
        #: What it holds.
        self.file = file
        self._maps = dict(maps)

    def govern(self, model: nn.Module) -> Governed:
        """Return the models of all maps.

        Args:
            model: the full-precision model. Its attention is unrolled and its parametrizations are removed, in place,
                where the maps need that. Drop it afterwards: the memory of layers that no map needs in full precision
                is then free.

        Raises:
            MapError: if the bundle was made for another model, or this hardware cannot run a layer's choice.
            BackendError: if the backend of the maps cannot run on this hardware.
        """
        model = uncompiled(model).eval()
        first = next(iter(self._maps.values()))
        backend, print_of_weights = backend_of(first), fingerprint(model)
        undo = unroll_as(model, first.layers)
        try:
            layers = {number: layers_of(file, model, print_of_weights) for number, file in self._maps.items()}
        except BaseException:
            undo()
            raise
        without_parametrizations(model)
        prepared: _Prepared = {}
        models = {
            number: with_layers(model, _layers_for(file, model, layers[number], backend, prepared))
            for number, file in self._maps.items()
        }
        return Governed(self.file, models, prepared.values())


def _layers_for(
    file: MapFile, model: nn.Module, layers: list[Layer], backend: Backend, known: _Prepared
) -> dict[str, nn.Module]:
    """Return layer name -> prepared layer of a map, those that are ``known`` included; new ones become known."""
    learned = dict.fromkeys(file.recovery.layers, file.recovery.sidecar.sha256) if file.recovery else {}
    undo = install_learned(model, file)
    try:
        prepared = prepared_for(file, model, layers, backend, cache_bytes=sys.maxsize)
        found = {}
        for name, mapped in file.layers.items():
            key = name, mapped, learned.get(name, "")
            if key not in known:
                known[key] = prepared.module(name, mapped.choice)
            found[name] = known[key]
    finally:
        undo()
    return found


def load_bundle(folder: str | PathLike[str]) -> Bundle:
    """Return the bundle in a folder.

    Raises:
        NotFoundError: if there is none, or one of its files is missing.
        MapError: if a file cannot be read.
    """
    return Bundle(*read(Path(folder)))
