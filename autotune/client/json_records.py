"""Records as JSON and back: what the HTTP API sends is what its client returns, record for record."""

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from autotune import errors
from autotune.jobs.records import JobRecord, Tally, TrialRecord
from search_spaces.errors import AutotuneError, ChoiceError, MapError, SpaceError
from workers.errors import TaskError
from workers.measurement import LatencySamples, Workload

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Some of the jobs, newest first."""

    jobs: tuple[JobRecord, ...]
    #: What to ask for the next page ``after``; None on the last one.
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPage:
    """Some of a job's trials, by ascending number."""

    trials: tuple[TrialRecord, ...]
    #: What to ask for the next page ``after``; None on the last one.
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallies:
    """How far jobs have come, by id."""

    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Raw latencies of a trial at one batch size."""

    #: Samples in one forward pass.
    batch_size: int
    #: What was timed.
    workload: Workload = Workload.FORWARD
    #: Latency of each forward pass in ms, in the order measured.
    candidate_ms: tuple[float, ...]
    #: Latency of each interleaved pass of the full-precision model in ms.
    reference_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples: LatencySamples) -> "Latency":
        """Return the samples as they are sent."""
        candidate_ms, reference_ms = samples.candidate_ms.tolist(), samples.reference_ms.tolist()
        return cls(
            batch_size=samples.batch_size,
            workload=samples.workload,
            candidate_ms=tuple(candidate_ms),
            reference_ms=tuple(reference_ms),
        )

    def samples(self) -> LatencySamples:
        """Return the samples as they were recorded."""
        return LatencySamples(
            batch_size=self.batch_size,
            workload=self.workload,
            candidate_ms=np.array(self.candidate_ms, dtype=np.float64),
            reference_ms=np.array(self.reference_ms, dtype=np.float64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a request."""

    #: Name of the error class.
    kind: str
    #: The rule, the value and the way out.
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """The answer to a request that cannot be carried out."""

    error: Problem


#: Errors that cross the wire, by name.
_ERRORS: dict[str, type[AutotuneError]] = {
    kind.__name__: kind
    for kind in (
        errors.JobSpecError,
        errors.TooLargeError,
        errors.NotFoundError,
        errors.StoreError,
        errors.StoreUnavailableError,
        errors.ConflictError,
        errors.UnauthenticatedError,
        errors.ForbiddenError,
        errors.TooManyRequestsError,
        errors.NoFeasibleMapError,
        ChoiceError,
        SpaceError,
        MapError,
        TaskError,
    )
}


def dump(kind: Any, value: object) -> bytes:
    """Return a value of type ``kind`` as JSON; numbers that JSON does not know are text, such as ``"Infinity"``."""
    # A dataclass takes this setting only from what holds it; here, a list of one.
    # A mapping that is no dict, such as a trial's packed choices, is sent as one; pydantic would warn of it.
    return _holder(kind).dump_json((value,), by_alias=True, fallback=dict, warnings=False)[1:-1]


def load(kind: type[T], text: str | bytes) -> T:
    """Return the value of type ``kind`` in a JSON text.

    Raises:
        pydantic.ValidationError: if there is none in it.
    """
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type] # mypy does not know that types are hashable
    return adapter.validate_json(text)


def error_of(problem: Problem) -> AutotuneError:
    """Return the error that the service met."""
    return _ERRORS.get(problem.kind, AutotuneError)(problem.message)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def _holder(kind: Any) -> TypeAdapter[tuple[Any]]:
    return TypeAdapter(tuple[kind], config=ConfigDict(ser_json_inf_nan="strings"))
