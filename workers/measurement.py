"""What measuring one candidate yields, as plain data."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]


class Workload(enum.StrEnum):
    """What production does with a model, timed on its own."""

    #: One forward pass; every task has it.
    FORWARD = "forward"
    #: Reading a prompt up to the first token of the answer.
    PREFILL = "prefill"
    #: Writing one more token of an answer.
    DECODE = "decode"
    #: Answering a whole request: reading its prompt and writing all of the answer.
    REQUEST = "request"
    #: Making a whole sample of a generative model, by many passes.
    SAMPLING = "sampling"


class Split(enum.StrEnum):
    """Data the accuracy is computed on."""

    #: Seen by the search.
    EVALUATION = "evaluation"
    #: Kept from the search; only verification looks at it.
    HELD_OUT = "held_out"
    #: Unlike what calibrated, as production's inputs may become; only tasks with ``has_shifted`` have it.
    SHIFTED = "shifted"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencySamples:
    """Raw latencies of one candidate in one workload at one batch size, interleaved with full precision."""

    workload: Workload = Workload.FORWARD
    #: Samples in one forward pass.
    batch_size: int
    #: Latency of each forward pass of the candidate in ms, in the order measured; shape ``(n,)``.
    candidate_ms: Samples
    #: Latency of each interleaved pass of the full-precision model in ms; shape ``(m,)``.
    reference_ms: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a measurement was taken: everything that may change its figures."""

    #: Processor or accelerator, for example ``Intel(R) Xeon(R) Processor, 2 cores``.
    hardware: str
    #: Its kind: figures of two kinds do not compare. Empty in records from before kinds were told apart.
    kind: str = ""
    #: Backend that ran the layers.
    backend: str
    #: Threads PyTorch used inside one operator.
    threads: int
    #: One-minute load average when measuring began, this process included.
    load: float
    #: Package or interpreter -> version.
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Figures of one candidate. What was not measured is None (accuracy ruled the candidate out)."""

    #: Task metric, higher is better.
    accuracy: float
    #: Mean divergence of the outputs from full precision, 0 for equal outputs.
    divergence: float
    #: Bytes of all parameters, buffers and packed weights of the model.
    weight_bytes: int
    #: Latencies: a forward pass at the first batch size, the job's other workloads at that size, then forward
    #: passes at the other sizes; empty if ruled out before timing.
    latency: tuple[LatencySamples, ...]
    #: Whether timing stopped early, because the candidate was slower than others that are no worse.
    gave_up: bool = False
    #: Largest sum of live activation bytes in one pass of any of the task's workloads at the first batch size, what
    #: it keeps between passes included; None if ruled out before.
    working_bytes: int | None
    #: Task metric on held-out data, which the search never sees, and full precision's; None unless final.
    held_out: tuple[float, float] | None = None
    #: Task metric and mean divergence on shifted data; None if the task has none, or accuracy ruled it out before.
    shifted: tuple[float, float] | None = None
    #: Wall-clock seconds the whole measurement took.
    seconds: float
    #: Seconds of it spent inside forward passes.
    forward_seconds: float
    #: Seconds the backend's runtime took to make a session of the map; None if it makes none. No part of a latency.
    session_seconds: float | None = None
    #: Where it was taken.
    environment: Environment


class FailureCause(enum.StrEnum):
    """Why a candidate has no measurement."""

    #: The candidate raised an error.
    ERROR = "error"
    #: The worker process died.
    CRASH = "crash"
    #: The worker ran out of memory.
    OUT_OF_MEMORY = "out_of_memory"
    #: The measurement did not end in time.
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A candidate that could not be measured, after all attempts."""

    cause: FailureCause
    #: What happened, in one line.
    message: str
    #: How often it was tried.
    attempts: int
