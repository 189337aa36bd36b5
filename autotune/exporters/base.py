"""The ``Exporter`` protocol: one format in which a map can be deployed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from autotune.maps.learned import install_learned
from autotune.maps.map_file import MapFile
from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from workers.backends import build_backend
from workers.backends.base import Deployed
from workers.device.hardware import kind_of
from workers.device.placement import placed
from workers.model.attention import unroll_as, unrolled_layers
from workers.model.full_precision import full_precision_model
from workers.model.prepared import PreparedModel
from workers.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A map and the full-precision model it was made for."""

    file: MapFile
    task: Task
    #: The exporter's own copy, in evaluation mode on the CPU, with the learned weights of a recovered map; the exporter
    #: may change it.
    model: nn.Module
    #: Every mapped layer of the model, in execution order.
    layers: tuple[Layer, ...]

    def build_model(self) -> nn.Module:
        """Return another copy of ``model``: as its task builds it, but with attention unrolled and learned weights."""
        model = full_precision_model(self.task)
        unroll_as(model, self.file.layers)
        install_learned(model, self.file)
        return model

    def full_precision(self) -> nn.Module:
        """Return the full-precision model without learned weights; it may be ``model`` itself."""
        return self.model if self.file.recovery is None else full_precision_model(self.task)

    @property
    def unrolled(self) -> frozenset[str]:
        """Names of the layers that the model calls only because attention was unrolled."""
        return unrolled_layers(self.model)

    def as_built(self) -> "Source":
        """Return the source with another copy of the model, as its task builds it, without unrolling attention."""
        layers = tuple(layer for layer in self.layers if layer.name not in self.unrolled)
        model = full_precision_model(self.task)
        install_learned(model, self.file)
        return replace(self, model=model, layers=layers)

    def deployed(self) -> tuple[Task, Deployed]:
        """Return the task on the device of the map's own backend, and the model as that backend deploys it.

        Full precision is installed until a map is applied.

        Raises:
            BackendError: if that backend cannot run here.
        """
        return self._deployed_on(self.file.backend)

    def reference(self) -> nn.Module:
        """Return full precision on the backend that the promised latency ratios are relative to.

        It shares layers with ``model``, so that no map may be deployed beside it.

        Raises:
            BackendError: if that backend cannot run here.
        """
        return self._deployed_on(self.file.reference)[1].model

    def _deployed_on(self, name: str) -> tuple[Task, Deployed]:
        backend = build_backend(name)
        task, model = placed(self.task, backend.device), self.model.to(backend.device)
        prepared = PreparedModel(
            model,
            self.layers,
            backend,
            self.file.ranges(),
            weight_bits=self.file.weight_bits(),
            kernels=self.file.kernels(kind_of(backend.device)),
        )
        return task, backend.deploy(task, prepared, self.file.measurement.batch_sizes)

    def untimed(self, exporter: "Exporter") -> str | None:
        """Return why the map's latency in a format is not comparable with the promised one, or None if it is.

        Raises:
            BackendError: if the map's backend cannot run here.
        """
        if exporter.untimed is None and build_backend(self.file.backend).device != "cpu":
            return "the map was measured on a GPU, but its export runs on the CPU"
        return exporter.untimed


class Exporter(Protocol):
    """Writes a map in one format, and loads it again with that format's own library."""

    #: Name on the command line.
    name: str
    #: How and why outputs may differ from our own backend's, for people.
    rounding: str
    #: Distribution names of the libraries that write and load the format.
    libraries: tuple[str, ...]
    #: Why the latency of a loaded artefact does not represent the deployed one; None if it does.
    untimed: str | None
    #: Whether the format needs the model as its task builds it, so that layers inside attention cannot have choices.
    as_built: bool
    #: Names of choices whose weights the format rounds on a grid of its own, so that learned integers would be lost.
    rounds_anew: Collection[str]

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why the format cannot express ``choice`` for ``layer``, or None if it can.

        Imports no heavy library.
        """
        ...

    def refuses_model(self, model: nn.Module) -> str | None:
        """Return why the format cannot hold ``model`` with any map, or None if it can.

        Imports no heavy library.
        """
        ...

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        """Write the artefact into the empty ``folder``; return JSON-ready data for ``load``.

        Args:
            source: a map whose choices the format can all express.
            folder: an empty folder.

        Raises:
            ExportError: if the model cannot be converted into the format.
        """
        ...

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        """Return the artefact as a module with the same inputs and outputs as the model.

        Args:
            folder: the folder that ``write`` filled.
            details: the data that ``write`` returned.
            build_model: builds the full-precision model with the map's layers, for formats that hold weights only.
        """
        ...
