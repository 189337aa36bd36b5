"""The measurement of one candidate, as plain data."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]


class Workload(enum.StrEnum):
    """A use of the model in production that is timed separately."""

    #: One forward pass; every task has it.
    FORWARD = "forward"
    #: Processing a prompt up to the first generated token.
    PREFILL = "prefill"
    #: Generating one more token.
    DECODE = "decode"
    #: Serving a whole request: prefill, then every token of the answer.
    REQUEST = "request"
    #: Generating a whole sample, in many passes.
    SAMPLING = "sampling"


class Split(enum.StrEnum):
    """Data the accuracy is computed on."""

    #: Seen by the search.
    EVALUATION = "evaluation"
    #: Hidden from the search; used only to verify its results.
    HELD_OUT = "held_out"
    #: Distributed differently from the calibration data, as production inputs may become; only tasks with
    #: ``has_shifted`` have it.
    SHIFTED = "shifted"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencySamples:
    """Raw latencies of one candidate in one workload at one batch size, interleaved with full precision."""

    workload: Workload = Workload.FORWARD
    #: Samples in one forward pass.
    batch_size: int
    #: Latency of each pass of the candidate in ms, in measurement order; shape ``(n,)``.
    candidate_ms: Samples
    #: Latency of each interleaved pass of the full-precision model in ms; shape ``(m,)``.
    reference_ms: Samples
    #: Whether timing stopped because the candidate was slower than a limit, or than maps of no less quality.
    gave_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a measurement was taken: everything that may affect its figures."""

    #: Processor or accelerator, for example ``Intel(R) Xeon(R) Processor, 2 cores``.
    hardware: str
    #: Kind of hardware; figures from different kinds are not comparable. Empty in records older than this field.
    kind: str = ""
    #: Backend that ran the layers.
    backend: str
    #: PyTorch's threads per operator.
    threads: int
    #: One-minute load average at the start of the measurement, this process included.
    load: float
    #: Package or interpreter -> version.
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Figures of one candidate. Figures that were not measured, because accuracy ruled the candidate out, are None."""

    #: Task metric, higher is better.
    accuracy: float
    #: Mean divergence of the outputs from full precision, 0 for equal outputs.
    divergence: float
    #: Bytes of all parameters, buffers and packed weights of the model.
    weight_bytes: int
    #: Latencies: the forward pass at the first batch size, the job's other workloads at that size, then the forward
    #: pass at the other sizes. Empty if accuracy ruled the candidate out before timing.
    latency: tuple[LatencySamples, ...]
    #: Peak of live activation bytes over the task's workloads at the first batch size, including what a workload
    #: keeps between passes; None if the candidate was ruled out first.
    working_bytes: int | None
    #: Task metric of the candidate and of full precision on held-out data, which the search never sees; None unless
    #: final.
    held_out: tuple[float, float] | None = None
    #: Why a final measurement has no ``held_out``, in one line; None if it has, or is not final.
    held_out_missing: str | None = None
    #: Task metric and mean divergence on shifted data; None if the task has none or the candidate was ruled out first.
    shifted: tuple[float, float] | None = None
    #: Wall-clock seconds the whole measurement took, without those spent waiting for the device.
    seconds: float
    #: Seconds spent waiting for the device, which another process held.
    waited_seconds: float = 0.0
    #: Seconds of it spent in forward passes.
    forward_seconds: float
    #: Seconds the backend's runtime took to create a session for the map; None if it creates none. Not included in any
    #: latency.
    session_seconds: float | None = None
    #: Where the measurement was taken.
    environment: Environment

    @property
    def gave_up(self) -> bool:
        """Whether timing stopped because the candidate was slower than a limit, or than maps of no less quality."""
        return any(samples.gave_up for samples in self.latency)


class FailureCause(enum.StrEnum):
    """Why a candidate has no measurement."""

    #: The candidate raised an error.
    ERROR = "error"
    #: The worker process died.
    CRASH = "crash"
    #: The worker ran out of memory.
    OUT_OF_MEMORY = "out_of_memory"
    #: The measurement did not finish in time.
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A candidate that could not be measured, after all attempts."""

    cause: FailureCause
    #: What happened, in one line.
    message: str
    #: Number of attempts.
    attempts: int
