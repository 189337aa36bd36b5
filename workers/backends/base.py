"""The ``Backend`` protocol: kernels for one kind of hardware, or another runtime."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import nn

from search_spaces.layer import Layer
from workers.model.layer_backend import LayerBackend
from workers.model.prepared import PreparedModel
from workers.progress import Report, silent
from workers.task import Task


class Deployed(Protocol):
    """A whole model as deployed and measured, which can run any map of its layers.

    Its methods refer to the map applied last, or to full precision before the first.
    """

    @property
    def model(self) -> nn.Module:
        """A module that is called like the original model."""
        ...

    @property
    def session_seconds(self) -> float | None:
        """Seconds that the runtime took to create a session for the map; None if it has no sessions."""
        ...

    def apply(self, names: Mapping[str, str]) -> None:
        """Install the map layer name -> choice name; layers it does not name take full precision.

        If an error occurs, the previous map stays installed. Switching to full precision and back is cheap.

        Raises:
            MapError, ChoiceError, CalibrationError: see ``PreparedModel.apply``.
            BackendError: if the runtime refuses the map.
        """
        ...

    def other_bytes(self) -> int:
        """Return the bytes of all weights outside the layers."""
        ...

    def weight_bytes(self) -> int:
        """Return the exact bytes of all weights: ``other_bytes`` plus the ``layer_bytes`` of every layer."""
        ...

    def working_bytes(self, run: Callable[[], object]) -> int:
        """Return the peak of live bytes that one pass allocates; ``run`` runs the pass."""
        ...

    def layer_latencies(
        self,
        layers: Sequence[Layer],
        choices: Mapping[str, Sequence[str]],
        run: Callable[[], object],
        report: Report = silent,
    ) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer name, choice name) -> ms inside the layer in one pass, and the ms of a full-precision pass.

        Layers of one shape share their samples. The caller holds the device lock. Full precision is installed when
        the call returns.

        Args:
            layers: the layers to time.
            choices: layer name -> names of the choices to time, full precision included.
            run: runs one forward pass.
            report: gets every step.
        """
        ...


class Backend(LayerBackend, Protocol):
    """Prepares layers for real kernels, and deploys whole models."""

    #: Name in job files.
    name: str
    #: PyTorch device the model runs on.
    device: str
    #: Distribution names of the libraries it uses, apart from PyTorch.
    libraries: tuple[str, ...]
    #: Whether the deployed model runs the prepared modules. If not, another runtime runs it; the modules then hold the
    #: same weights and compute the same, so that sensitivities can be estimated in PyTorch.
    runs_modules: bool

    def unavailable(self) -> str | None:
        """Return why the backend cannot run here, or None if it can."""
        ...

    def hardware(self) -> str:
        """Return the processor or accelerator the kernels run on, for people."""
        ...

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        """Return the model in its deployed form; it uses the layers of ``prepared`` and changes its map.

        Args:
            task: calls the model.
            prepared: the model with full precision installed.
            batch_sizes: batch sizes at which latency is measured.

        Raises:
            BackendError: if the runtime cannot run the model.
        """
        ...
