"""A model on one backend, with all that measures its maps there."""

from collections.abc import Mapping, Sequence

from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.layer import Layer
from workers.backends.base import Backend
from workers.device import environment
from workers.evaluation.map_latency import MapLatency
from workers.evaluation.map_quality import MapQuality
from workers.measurement import Environment, Workload
from workers.model.prepared import PreparedModel
from workers.progress import Report
from workers.setup import BackendDescription, Calibration, KnownKernels, MeasurementSettings
from workers.task import Task, Timed
from workers.timing.device_lock import DeviceLock


class Deployment:
    """A model as one backend deploys it."""

    def __init__(
        self,
        backend: Backend,
        task: Task,
        model: nn.Module,
        layers: Sequence[Layer],
        calibration: Calibration,
        known: KnownKernels,
        workloads: Mapping[int, Mapping[Workload, Timed]],
        settings: MeasurementSettings,
        lock: DeviceLock,
        report: Report,
        *,
        cache_bytes: int | None = None,
        reference: "Deployment | None" = None,
    ) -> None:
        """Deploy a model.

        Args:
            backend: runs the model.
            task: the model's task.
            model: in full precision; this object changes its layers.
            layers: its layers, in execution order.
            calibration: of the layers.
            known: what is known about the layers on this backend.
            workloads: batch size -> the workloads of the task.
            settings: how to time them.
            lock: the lock of the device.
            report: gets every step.
            cache_bytes: see ``PreparedModel``.
            reference: the model on the backend whose full precision maps are compared with; None is this one.

        Raises:
            BackendError: if the backend cannot run the model.
        """
        self.backend, self.layers = backend, tuple(layers)
        #: The layers in PyTorch; measurements use the deployed model.
        self.prepared = PreparedModel(
            model,
            layers,
            backend,
            calibration.ranges,
            cache_bytes=cache_bytes,
            weight_bits=known.weight_bits,
            kernels=known.kernels,
        )
        self.deployed = backend.deploy(task, self.prepared, settings.batch_sizes)
        # Another runtime only runs the forward pass; a task cannot pass its cache back to that runtime.
        timed = workloads if backend.runs_modules else {size: _forward(found) for size, found in workloads.items()}
        against, baseline = (reference.quality, reference.deployed) if reference else (None, None)
        self.quality: MapQuality = MapQuality(task, self.deployed, lock, report, reference=against)
        self.latency = MapLatency(self.deployed, timed, settings, lock, report, reference=baseline)
        with lock.exclusive():
            kernels = self.prepared.kernels(report)
        #: Description of the layers here, for the driver.
        self.description = BackendDescription(
            refusals=_refusals(self.prepared, calibration),
            layer_bytes=self.prepared.layer_bytes(),
            other_bytes=self.deployed.other_bytes(),
            environment=self.environment(),
            workloads=tuple(name for name in next(iter(timed.values())) if name is not Workload.FORWARD),
            weight_bits=self.prepared.weight_bits,
            kernels=kernels,
        )

    def environment(self) -> Environment:
        """Return where measurements are taken, and the load at this moment."""
        backend = self.backend
        return environment.capture(
            hardware=backend.hardware(), backend=backend.name, device=backend.device, libraries=backend.libraries
        )

    def legal(self) -> dict[str, list[str]]:
        """Return layer name -> names of the choices it can take, including full precision."""
        return {
            layer.name: [name for name in CHOICES if name not in self.description.refusals[layer.name]]
            for layer in self.layers
            if layer.frozen_reason is None
        }

    def layer_latencies(self) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer, choice) -> ms inside the layer in one pass, and the ms of a full-precision pass."""
        return self.latency.of_layers(self.layers, self.legal())


def _forward(workloads: Mapping[Workload, Timed]) -> dict[Workload, Timed]:
    return {Workload.FORWARD: workloads[Workload.FORWARD]}


def _refusals(prepared: PreparedModel, calibration: Calibration) -> dict[str, dict[str, str]]:
    """Return layer name -> choice name -> why the backend refuses it or what calibration lacks for it."""
    found = {}
    for layer in prepared.layers:
        lacking = {name: calibration.refuses(layer, choice) for name, choice in CHOICES.items()}
        found[layer.name] = {name: why for name, why in lacking.items() if why} | prepared.refusals(layer.name)
    return found
