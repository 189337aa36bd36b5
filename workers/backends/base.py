"""The ``Backend`` seam: kernels of one kind of hardware, or another runtime."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import nn

from search_spaces.layer import Layer
from workers.model.layer_backend import LayerBackend
from workers.model.prepared import PreparedModel
from workers.task import Task


class Deployed(Protocol):
    """A whole model as it is deployed and measured: it runs any map of its layers.

    Its figures are those of the map that was applied last, full precision before the first.
    """

    @property
    def model(self) -> nn.Module:
        """Return what is called like the original model."""
        ...

    @property
    def session_seconds(self) -> float | None:
        """Return how long the runtime took to make a session of the map, None if there is no such thing."""
        ...

    def apply(self, names: Mapping[str, str]) -> None:
        """Have the map layer name -> choice name run from now on; layers it does not name take full precision.

        An error leaves the model as it was. Changing to full precision and back costs next to nothing.

        Raises:
            MapError, ChoiceError, CalibrationError: see ``PreparedModel.apply``.
            BackendError: if the runtime refuses the map.
        """
        ...

    def reset(self) -> None:
        """Have full precision run from now on."""
        ...

    def other_bytes(self) -> int:
        """Return the bytes of all weights outside the layers."""
        ...

    def weight_bytes(self) -> int:
        """Return the exact bytes of all weights: ``other_bytes``, and the layers' as ``layer_bytes`` says."""
        ...

    def working_bytes(self, run: Callable[[], object]) -> int:
        """Return the largest sum of bytes alive at once that one pass allocated; ``run`` makes it."""
        ...

    def layer_latencies(
        self, layers: Sequence[Layer], choices: Mapping[str, Sequence[str]], run: Callable[[], object]
    ) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer name, choice name) -> ms inside the layer in one pass, and the ms of a full-precision pass.

        Layers of one shape are taken together. The caller holds the device lock. Full precision runs when the call
        returns.

        Args:
            layers: to time.
            choices: layer name -> names of the choices to time, full precision included.
            run: runs one forward pass.
        """
        ...


class Backend(LayerBackend, Protocol):
    """Turns full-precision layers and choices into what runs with real kernels, and deploys whole models."""

    #: Name in job files.
    name: str
    #: PyTorch device the model runs on.
    device: str
    #: Distribution names of the libraries it runs with, beside PyTorch.
    libraries: tuple[str, ...]
    #: Whether prepared modules are what runs. If not, they hold the weights of what does, and only compute
    #: the same, so that sensitivities can be estimated in PyTorch.
    runs_modules: bool

    def unavailable(self) -> str | None:
        """Return why the backend cannot run here, or None if it can."""
        ...

    def hardware(self) -> str:
        """Return the processor or accelerator the kernels run on, for people."""
        ...

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        """Return the prepared model as it is deployed; it has its layers from ``prepared``, whose map it sets.

        Args:
            task: how the model is called.
            prepared: the model in full precision.
            batch_sizes: sizes that latency is measured at.

        Raises:
            BackendError: if the runtime cannot run the model.
        """
        ...
