"""Turn what went wrong in a measurement into a recorded failure."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from search_spaces.errors import AutotuneError
from workers.errors import PoolError
from workers.measurement import Failure, FailureCause

_LONGEST = 500


def failure_of(error: BaseException, *, attempts: int = 1) -> Failure:
    """Return the failure that ``error`` amounts to, told in one line."""
    # torch.cuda.OutOfMemoryError and torch's CPU allocator are RuntimeErrors that only their text gives away.
    text = " ".join(f"{type(error).__name__}: {error}".split())
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text
    cause = FailureCause.OUT_OF_MEMORY if memory else FailureCause.ERROR
    return Failure(cause=cause, message=text[:_LONGEST], attempts=attempts)


@contextmanager
def starting(task_file: str | None) -> Iterator[None]:
    """Make whatever keeps a worker from starting one line, with the line of the user's ``task_file`` it came by.

    Raises:
        PoolError: if it is no error that says by itself what to do.
    """
    try:
        yield
    except AutotuneError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == task_file]
        where = f" ({task_file}, line {frames[-1].lineno})" if frames else ""
        raise PoolError(f"a worker could not start: {failure_of(error).message}{where}") from error
