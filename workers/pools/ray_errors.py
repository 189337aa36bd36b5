"""Conversion of Ray's errors into our own."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayError, RayTaskError

from search_spaces.errors import AutotuneError
from workers.errors import ClusterLostError, PoolError
from workers.measurement import FailureCause


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Convert Ray's errors into ``ClusterLostError``."""
    try:
        yield
    except RayError as error:
        raise cluster_lost(error) from error


def cluster_lost(error: RayError) -> ClusterLostError:
    """Return the error for a cluster that does not respond."""
    return ClusterLostError(f"the Ray cluster is gone: {one_line(error)}; start it and resume the job")


def cause_of(error: RayTaskError) -> AutotuneError:
    """Return the reason why a worker could not start, as one of our errors."""
    cause = error.cause
    return cause if isinstance(cause, AutotuneError) else PoolError(f"a worker could not start: {one_line(cause)}")


def crash_cause(error: RayActorError) -> FailureCause:
    """Return the cause of a worker's death."""
    text = str(error).lower()
    out_of_memory = "out-of-memory" in text or "ran out of memory" in text or "memory monitor" in text
    return FailureCause.OUT_OF_MEMORY if out_of_memory else FailureCause.CRASH


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__
