"""The ``Backend`` seam: kernels of one kind of hardware, or another runtime."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.prepared import PreparedModel
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


class Backend(Protocol):
    """Turns full-precision layers and choices into what runs with real kernels.

    A prepared module takes and returns what the original takes and returns, in fp32, so layers with
    different choices can be neighbours. It never changes the module it was prepared from.
    """

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

    def int8_weight_bits(self, layer: Layer) -> int:
        """Return how many bits int8 weights of ``layer`` may have for int8 products to be exact here: 8 or 7.

        New maps take so many. A map with other bits is refused, or runs right but slower.
        """
        ...

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why no kernel runs ``layer`` with ``choice``, or None if one does."""
        ...

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]], known: str | None = None
    ) -> str | None:
        """Return the name of what computes ``module`` with ``choice`` at input ``shapes``, None if there is no choice.

        Kernels may be timed for it, so the caller holds the device lock. ``known`` is the name that was returned
        elsewhere for the same; it is returned again if that kernel runs here.
        """
        ...

    def prepare(
        self,
        module: nn.Module,
        choice: LayerChoice,
        input_range: ActivationRange | None,
        shapes: Sequence[tuple[int, ...]] = (),
        kernel: str | None = None,
    ) -> nn.Module:
        """Return a module that runs ``module`` with ``choice``.

        Args:
            module: the full-precision layer; full precision itself may return it unchanged.
            choice: one the backend does not refuse for this layer.
            input_range: calibrated range of the input; static choices need it. If it has the means of channels, the
                bias makes up for what rounding the weights adds to outputs on average.
            shapes: of the inputs at which it should be fast; empty if they are not known.
            kernel: what should compute it, as ``kernel`` names it; one that does not run here is not taken.
        """
        ...

    def weight_bytes(self, prepared: nn.Module) -> int:
        """Return the exact bytes a prepared module holds: weights, scales, zero points and bias.

        A full-precision module counts its parameters and buffers.
        """
        ...

    def layer_bytes(self, layer: Layer, choice: LayerChoice) -> int:
        """Return what ``weight_bytes`` of ``layer`` prepared with ``choice`` is, without preparing it."""
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
