"""The setup that a worker gets, and the model description that it returns once it is ready; plain data."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.measurement import Environment, Workload


class ObserverKind(enum.StrEnum):
    """How a static range is chosen from the calibration histogram."""

    #: Smallest to largest value seen.
    MINMAX = "minmax"
    #: Range that covers a central share of the values seen.
    PERCENTILE = "percentile"
    #: Range with the least expected squared quantization error.
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How layer inputs are calibrated."""

    observer: ObserverKind = ObserverKind.MINMAX
    #: Share of values inside the range, in percent; used by the percentile observer only.
    percentile: float = 99.99
    #: Whether biases compensate for the mean error of rounded weights.
    bias_correction: bool = False
    #: Whether to calibrate smoothing factors, for the choices that need them.
    smoothing: bool = False
    #: Whether to calibrate second moments of the inputs, for the choices that need them.
    moments: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSettings:
    """How latency and accuracy are measured."""

    #: Batch sizes to time; objectives and constraints use the first.
    batch_sizes: tuple[int, ...] = (1,)
    #: Workloads to time in addition to the forward pass, at the first batch size.
    workloads: tuple[Workload, ...] = ()
    #: Average arrival rate of requests, which determines response times under load; None without a load.
    requests_per_second: float | None = None
    #: Threads per operator; 0 uses every core available to the worker.
    threads: int = 0
    #: Timed passes of a candidate per workload and batch size; fewer where ``half_width`` is reached.
    repeats: int = 100
    #: Timed passes of a map that is measured at full fidelity; fewer where half of ``half_width`` is reached.
    final_repeats: int = 500
    #: Share of the latency ratio that its 95 % interval may reach to either side; timing stops once it does. None
    #: always times all passes.
    half_width: float | None = None
    #: Minimum seconds of warm-up, before the timer checks latencies for stability.
    warmup_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKernels:
    """What an earlier worker of the same job, or a map, determined for the layers of one backend."""

    #: Layer name -> bits of int8 weights in int8 products; None uses as many as are exact on this processor.
    weight_bits: Mapping[str, int] | None = None
    #: Layer name -> choice name -> kernel; other kernels are chosen by timing. Kernels of one choice differ in the last
    #: bits of their outputs, so results are reproducible only with equal kernels.
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """Everything a worker needs to measure candidates of one job."""

    #: Registered name of the task.
    task: str
    #: The task's parameters.
    task_parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Name of the backend whose full precision everything is compared with; ``auto`` selects the best one for the
    #: hardware.
    backend: str = "auto"
    #: Further backends that run maps of the same model -> what is known about its layers there.
    others: Mapping[str, KnownKernels] = field(default_factory=dict)
    #: Whether to add every other backend that can run the model here.
    all_backends: bool = False
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    measurement: MeasurementSettings = field(default_factory=MeasurementSettings)
    #: A Python file that registers tasks; each worker runs it before it builds the task. It comes from
    #: the command line only, never from a job file or the database.
    task_file: str | None = None
    #: Bound of the caches of prepared layers of all backends, in bytes; the least recently used layers are evicted.
    #: None follows the size of the model, for each backend.
    cache_bytes: int | None = None
    #: Ranges from an earlier calibration of the same job; None calibrates now.
    ranges: Mapping[str, ActivationRange] | None = None
    #: What is known about the layers on ``backend``.
    known: KnownKernels = field(default_factory=KnownKernels)

    def continued(self, description: "ModelDescription") -> "WorkerSetup":
        """Return the setup for another worker of the job, which then computes the same numbers as the described one."""

        def known(on: "ModelDescription") -> KnownKernels:
            # Jobs recorded before weight bits existed used 8 bits everywhere.
            bits = {layer.name: on.weight_bits.get(layer.name, 8) for layer in on.layers}
            return KnownKernels(weight_bits=bits, kernels=on.kernels)

        return replace(
            self,
            others={name: known(description.on(name)) for name in description.others},
            all_backends=False,
            ranges=description.calibration.ranges,
            known=known(description),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The workers of a job."""

    #: Number of workers.
    count: int = 1
    #: CPUs per worker, fractions allowed; None divides the cores of a machine among the workers.
    cpus: float | None = None
    #: GPUs per worker, fractions allowed.
    gpus: float = 0.0
    #: Address of a Ray cluster, or ``local`` for a private one on this machine.
    ray_address: str = "local"
    #: Whether other jobs share the cluster. If so, ``count`` is an upper limit and the pool waits for its first worker.
    shared: bool = False
    #: Kind of hardware the user wants, or part of its name, case-insensitive; None selects the kind with room for the
    #: most workers.
    hardware: str | None = None
    #: Kind of hardware that has already measured for the job, which later workers must match; empty if unknown.
    kind: str = ""
    #: Seconds after which the pool considers a measurement hung and replaces its worker.
    trial_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHistogram:
    """Distribution of a layer's inputs during calibration."""

    #: Lower edge of the first bin, and upper edge of the last.
    low: float
    high: float
    #: Number of values in each of the equal-width bins.
    counts: tuple[int, ...]
    #: Share of the values outside the calibrated range, accurate to one bin of the observer.
    clipped: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Result of calibration."""

    #: Layer name -> range of its input.
    ranges: Mapping[str, ActivationRange]
    #: Layer name -> histogram of its input; empty if none were recorded with the ranges.
    histograms: Mapping[str, ActivationHistogram] = field(default_factory=dict)
    #: Samples in the calibration batches.
    samples: int
    #: Seconds of the calibration pass.
    seconds: float
    #: Seconds of the additional pass for smoothing factors; None if there was none.
    smoothing_seconds: float | None = None
    #: Seconds of the additional pass for second moments; None if there was none.
    moments_seconds: float | None = None
    #: Layer name -> share of its inputs on shifted data that static quantization clips, because they lie outside the
    #: range; None if the task has no shifted data.
    clipped: Mapping[str, float] | None = None

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return what calibration lacks for ``layer`` to take ``choice``, or None if it lacks nothing."""
        known = self.ranges.get(layer.name)
        if choice.needs_calibration and known is None and not layer.kind.looks_up:
            return "needs a calibrated range, but no calibration batch ran this layer; static choices need data for it"
        if choice.is_smooth and (known is None or known.smoothing is None):
            return f"needs smoothing factors, which are calibrated only if search.choices includes {choice.name}"
        if choice.is_gptq and (known is None or known.moments is None):
            return f"needs second moments, which are calibrated only if search.choices includes {choice.name}"
        return None


class Estimator(enum.StrEnum):
    """How sensitivities were estimated."""

    #: Products of layer errors with random gradients backpropagated from the outputs.
    GRADIENT = "gradient"
    #: Relative errors of the layers' own outputs, scaled to the measured divergence of the uniform maps.
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """Predicted effect of quantizing one layer alone with one choice."""

    layer: str
    choice: str
    #: Predicted divergence from full precision; 0 for full precision itself.
    divergence: float
    #: Milliseconds spent in the layer during one pass at the job's first batch size.
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Predicted effects of every layer and choice, taken before any map is measured."""

    #: One per layer and choice it can take, full precision included.
    layers: tuple[LayerProbe, ...]
    #: Milliseconds of a full-precision pass, measured together with the layers.
    pass_ms: float
    #: How the divergences were estimated, and on how many samples.
    estimator: Estimator
    samples: int
    #: Whether more samples would have been used if there had been time; not recorded.
    cut: bool = False
    #: Seconds that probing took, without those spent waiting for the device.
    seconds: float
    #: Seconds spent waiting for the device, which another process held; not recorded.
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDescription:
    """What differs between the backends of one job; the fields are those of ``ModelDescription``."""

    refusals: Mapping[str, Mapping[str, str]]
    layer_bytes: Mapping[str, Mapping[str, int]]
    other_bytes: int
    environment: Environment
    workloads: tuple[Workload, ...] = ()
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A ready worker's description of the model; the driver builds the search space from it.

    Fields that depend on the backend are those of the one whose full precision everything is compared with.
    """

    #: sha256 over names, shapes, types and bytes of the state dict.
    fingerprint: str
    #: Quantizable layers in execution order.
    layers: tuple[Layer, ...]
    #: Layer name -> choice name -> why the backend refuses it; choices it supports are absent.
    refusals: Mapping[str, Mapping[str, str]]
    #: Layer name -> choice name -> bytes of the prepared layer.
    layer_bytes: Mapping[str, Mapping[str, int]]
    #: Bytes of everything in the model outside the quantizable layers.
    other_bytes: int
    calibration: Calibration
    environment: Environment
    #: Seconds that the worker took to load and check the model, to calibrate it and to choose kernels; waiting for the
    #: device is not included.
    loading_seconds: float = 0.0
    #: Workloads of the task that can be timed in addition to the forward pass.
    workloads: tuple[Workload, ...] = ()
    #: Module name -> why its weights stay in full precision, for modules that are not quantizable layers.
    skipped: Mapping[str, str] = field(default_factory=dict)
    #: Layer name -> bits of int8 weights in int8 products; absent layers use 8.
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    #: Layer name -> choice name -> the fastest kernel, where the backend has several.
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Seconds spent waiting for the device, which another process held.
    waited_seconds: float = 0.0
    #: Name -> description, for the other backends of the job.
    others: Mapping[str, BackendDescription] = field(default_factory=dict)
    #: Name -> why the model does not run there, for backends that were left out.
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends that run the model, the one that others are compared with first."""
        return (self.environment.backend, *self.others)

    def on(self, backend: str) -> "ModelDescription":
        """Return the description on one of ``backends``; trials without a backend ran on the first."""
        if backend not in self.others:
            return self
        other = self.others[backend]
        return replace(self, **{each.name: getattr(other, each.name) for each in fields(other)})

    def weight_bytes(self, names: Mapping[str, str]) -> int:
        """Return the exact weight bytes of the map layer name -> choice name."""
        return self.other_bytes + sum(self.layer_bytes[layer][choice] for layer, choice in names.items())
