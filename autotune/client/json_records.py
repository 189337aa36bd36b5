"""Conversion of records to JSON and back, shared by the HTTP API and its client."""

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
    """A page of jobs, newest first."""

    jobs: tuple[JobRecord, ...]
    #: Value of ``after`` for the next page; None on the last one.
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPage:
    """A page of a job's trials, by ascending number."""

    trials: tuple[TrialRecord, ...]
    #: Value of ``after`` for the next page; None on the last one.
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallies:
    """Progress of jobs, by id."""

    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Raw latencies of a trial in one workload at one batch size."""

    #: Samples in one forward pass.
    batch_size: int
    #: Workload that was timed.
    workload: Workload = Workload.FORWARD
    #: Latency of each forward pass in ms, in the order measured.
    candidate_ms: tuple[float, ...]
    #: Latency of each interleaved pass of the full-precision model in ms.
    reference_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples: LatencySamples) -> "Latency":
        """Return the samples in the form that is sent."""
        candidate_ms, reference_ms = samples.candidate_ms.tolist(), samples.reference_ms.tolist()
        return cls(
            batch_size=samples.batch_size,
            workload=samples.workload,
            candidate_ms=tuple(candidate_ms),
            reference_ms=tuple(reference_ms),
        )

    def samples(self) -> LatencySamples:
        """Return the samples in the form that was recorded."""
        return LatencySamples(
            batch_size=self.batch_size,
            workload=self.workload,
            candidate_ms=np.array(self.candidate_ms, dtype=np.float64),
            reference_ms=np.array(self.reference_ms, dtype=np.float64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongField:
    """What is wrong with one field of a request."""

    #: Keys and positions that lead to it, joined by dots.
    path: str
    message: str
    #: The name that was probably meant; null if none is close.
    suggestion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a request."""

    #: Name of the error class.
    kind: str
    #: The rule, the value and the way out.
    message: str
    #: The errors of the message one by one; empty if it is about no single field.
    errors: tuple[WrongField, ...] = ()

    @classmethod
    def of(cls, error: AutotuneError) -> "Problem":
        """Return the problem that an error of the service is for its caller."""
        found = error.errors if isinstance(error, errors.JobSpecError) else ()
        wrong = tuple(WrongField(path=one.path, message=one.message, suggestion=one.suggestion) for one in found)
        return cls(kind=type(error).__name__, message=str(error), errors=wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """The response to a request that fails."""

    error: Problem


#: Errors that the client raises as the service did, by class name.
_ERRORS: dict[str, type[AutotuneError]] = {
    kind.__name__: kind
    for kind in (
        errors.JobSpecError,
        errors.TooLargeError,
        errors.NotFoundError,
        errors.StoreError,
        errors.StoreUnavailableError,
        errors.ConflictError,
        errors.MethodNotAllowedError,
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
    """Return a value of type ``kind`` as JSON; numbers that JSON lacks become strings such as ``"Infinity"``."""
    # A dataclass takes this setting only from its container, here a tuple of one element.
    # The fallback sends other mappings, such as a trial's packed choices, as dicts; pydantic would warn about them.
    return _holder(kind).dump_json((value,), by_alias=True, fallback=dict, warnings=False)[1:-1]


def load(kind: type[T], text: str | bytes) -> T:
    """Return the value of type ``kind`` in a JSON text.

    Raises:
        pydantic.ValidationError: if the text is not a valid value.
    """
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type] # mypy does not know that types are hashable
    return adapter.validate_json(text)


def error_of(problem: Problem) -> AutotuneError:
    """Return the error that the service raised."""
    kind = _ERRORS.get(problem.kind, AutotuneError)
    if issubclass(kind, errors.JobSpecError):
        return kind(problem.message, [errors.FieldError(path=one.path, message=one.message) for one in problem.errors])
    return kind(problem.message)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def _holder(kind: Any) -> TypeAdapter[tuple[Any]]:
    return TypeAdapter(tuple[kind], config=ConfigDict(ser_json_inf_nan="strings"))
