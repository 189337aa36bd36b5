"""What a worker is told, and what it says about the model once it is ready; plain data."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from search_spaces.choice import LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.measurement import Environment, Workload

#: Bytes of prepared layers that a worker keeps, unless the installed map alone has more.
CACHE_BYTES = 4 << 30


class ObserverKind(enum.StrEnum):
    """How a static range is chosen from the calibration histogram."""

    #: Smallest to largest value seen.
    MINMAX = "minmax"
    #: Central share of the values seen.
    PERCENTILE = "percentile"
    #: Range with the least expected squared quantization error.
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How static ranges are calibrated."""

    observer: ObserverKind = ObserverKind.MINMAX
    #: Share of values inside the range, in percent; only the percentile observer reads it.
    percentile: float = 99.99
    #: Whether biases make up for the mean error of rounded weights.
    bias_correction: bool = False
    #: Whether factors that smooth inputs are sought too, for the choices that need them.
    smoothing: bool = False
    #: Whether second moments of inputs are sought too, for the choices that need them.
    moments: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSettings:
    """How latency and accuracy are measured."""

    #: Batch sizes timed; objectives and constraints read the first.
    batch_sizes: tuple[int, ...] = (1,)
    #: Workloads timed beside the forward pass, at the first batch size.
    workloads: tuple[Workload, ...] = ()
    #: How fast requests come on average, which their response times under load depend on; None without a load.
    requests_per_second: float | None = None
    #: Threads inside one operator; 0 takes every core the worker may use.
    threads: int = 0
    #: Timed forward passes of a candidate at each batch size.
    repeats: int = 100
    #: Timed forward passes of a map that is measured at full fidelity.
    final_repeats: int = 500
    #: Seconds of warm-up at least, before latencies are looked at for stability.
    warmup_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """Everything a worker needs to measure candidates of one job."""

    #: Registered name of the task.
    task: str
    #: The task's parameters.
    task_parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Backend name; ``auto`` takes the best one for the hardware.
    backend: str = "auto"
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    measurement: MeasurementSettings = field(default_factory=MeasurementSettings)
    #: A Python file that registers tasks, run by each worker before it builds the task. Comes from
    #: the command line only, never from a job file or the database.
    task_file: str | None = None
    #: Bytes of prepared layers kept; beyond, those used longest ago are prepared again when they are needed.
    cache_bytes: int = CACHE_BYTES
    #: Ranges from an earlier calibration of the same job; None calibrates now.
    ranges: Mapping[str, ActivationRange] | None = None
    #: Layer name -> bits of int8 weights in int8 products, of the same job or a map; None takes what is exact here.
    weight_bits: Mapping[str, int] | None = None
    #: Layer name -> choice name -> kernel, of the same job or a map; others are chosen by timing. Two kernels of one
    #: choice differ in the last bits of their outputs, so numbers are only equal where kernels are.
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def continued(self, description: "ModelDescription") -> "WorkerSetup":
        """Return the setup for another worker of a job, whose numbers equal those of the described one."""
        # Jobs of before had 8 bits everywhere.
        bits = {layer.name: description.weight_bits.get(layer.name, 8) for layer in description.layers}
        return replace(self, ranges=description.calibration.ranges, weight_bits=bits, kernels=description.kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Which workers a job has."""

    #: Number of workers.
    count: int = 1
    #: CPUs of each worker, fractions allowed; None shares the cores of a machine.
    cpus: float | None = None
    #: GPUs of each worker, fractions allowed.
    gpus: float = 0.0
    #: Address of a Ray cluster, or ``local`` for a private one on this machine.
    ray_address: str = "local"
    #: Whether other jobs use the cluster too: then ``count`` is the most there may be, and workers are waited for.
    shared: bool = False
    #: Kind of hardware the user wants, or a part of its name in any case; None takes what most workers fit on.
    hardware: str | None = None
    #: Kind of hardware that measured for the job before; then no other will do. Empty if none is known.
    kind: str = ""
    #: Seconds after which a measurement counts as hung and its worker is replaced.
    trial_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHistogram:
    """How a layer's inputs were distributed in calibration."""

    #: Lower edge of the first bin, and upper edge of the last.
    low: float
    high: float
    #: Values in each of the equal bins between them.
    counts: tuple[int, ...]
    #: Share of the values outside the calibrated range, to the width of a bin of the observer.
    clipped: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one calibration pass found."""

    #: Layer name -> range of its input.
    ranges: Mapping[str, ActivationRange]
    #: Layer name -> histogram of its input; empty if the pass that found the ranges recorded none.
    histograms: Mapping[str, ActivationHistogram] = field(default_factory=dict)
    #: Samples in the calibration batches.
    samples: int
    #: Seconds the pass took.
    seconds: float
    #: Seconds another pass took that found smoothing factors; None if none were sought.
    smoothing_seconds: float | None = None
    #: Seconds another pass took that found second moments; None if none were sought.
    moments_seconds: float | None = None
    #: Layer name -> share of its inputs on shifted data that lie outside the range, so that static quantization
    #: clips them; None if the task has no shifted data.
    clipped: Mapping[str, float] | None = None

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return what calibration lacks for ``layer`` to take ``choice``, or None if nothing."""
        known = self.ranges.get(layer.name)
        if choice.is_smooth and (known is None or known.smoothing is None):
            return f"needs smoothing factors, which calibration seeks only if search.choices has {choice.name}"
        if choice.is_gptq and (known is None or known.moments is None):
            return f"needs second moments, which calibration seeks only if search.choices has {choice.name}"
        return None


class Estimator(enum.StrEnum):
    """How sensitivities were estimated."""

    #: Products of the layers' errors with random gradients from the outputs.
    GRADIENT = "gradient"
    #: Relative errors of the layers' own outputs, scaled to the uniform maps.
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """What is expected of one layer if it alone takes one choice."""

    layer: str
    choice: str
    #: Predicted divergence from full precision; 0 for full precision itself.
    divergence: float
    #: Milliseconds inside the layer in one pass of the job's first batch size.
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What is expected of every layer and choice before any map was measured."""

    #: One for each layer and each choice it can take, full precision included.
    layers: tuple[LayerProbe, ...]
    #: Milliseconds of a full-precision pass, taken together with the layers'.
    pass_ms: float
    #: How the divergences were estimated, and on how many samples.
    estimator: Estimator
    samples: int
    #: Seconds the probes took.
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What a ready worker says about the model; the driver builds the search space from it."""

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
    #: Workloads the task can be timed in beside the forward pass.
    workloads: tuple[Workload, ...] = ()
    #: Module name -> why its weights stay in full precision, for modules that are no quantizable layers.
    skipped: Mapping[str, str] = field(default_factory=dict)
    #: Layer name -> bits of int8 weights in int8 products, 8 where it is absent.
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    #: Layer name -> choice name -> the kernel that computes it, where the backend has several; the fastest was taken.
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def weight_bytes(self, names: Mapping[str, str]) -> int:
        """Return the exact weight bytes of the map layer name -> choice name."""
        return self.other_bytes + sum(self.layer_bytes[layer][choice] for layer, choice in names.items())
