"""A model that PyTorch runs layer by layer."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from workers.backends.base import Deployed
from workers.backends.packed import weight_bytes
from workers.device import memory
from workers.model.prepared import PreparedModel
from workers.progress import Report, silent
from workers.task import Task
from workers.timing import layer_latency
from workers.timing.clock import clock_of


class EagerBackend:
    """Base of backends whose prepared layers PyTorch runs one by one. See ``Backend``."""

    device: str
    runs_modules = True

    def int8_weight_bits(self, layer: Layer) -> int:
        return 8

    def kernel(
        self, module: nn.Module, choice: LayerChoice, shapes: Sequence[tuple[int, ...]], known: str | None = None
    ) -> str | None:
        return None

    def weight_bytes(self, prepared: nn.Module) -> int:
        return weight_bytes(prepared)

    def deploy(self, task: Task, prepared: PreparedModel, batch_sizes: Sequence[int]) -> Deployed:
        return Eager(prepared, self.device)


class Eager:
    """The prepared model itself. See ``Deployed``."""

    session_seconds: float | None = None

    def __init__(self, prepared: PreparedModel, device: str) -> None:
        #: See ``Deployed.model``.
        self.model = prepared.model
        self._prepared = prepared
        self._device = device

    def apply(self, names: Mapping[str, str]) -> None:
        self._prepared.apply(names)

    def other_bytes(self) -> int:
        return self._prepared.other_bytes()

    def weight_bytes(self) -> int:
        return self._prepared.weight_bytes()

    def working_bytes(self, run: Callable[[], object]) -> int:
        return memory.working_bytes(run, self._device)

    def layer_latencies(
        self,
        layers: Sequence[Layer],
        choices: Mapping[str, Sequence[str]],
        run: Callable[[], object],
        report: Report = silent,
    ) -> tuple[dict[tuple[str, str], float], float]:
        return layer_latency.measure(self._prepared, layers, choices, run, clock_of(self._device), report)
