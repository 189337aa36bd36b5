"""Convert exceptions of a measurement into recorded failures."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from search_spaces.errors import AutotuneError
from workers.errors import PoolError
from workers.measurement import Failure, FailureCause

_LONGEST = 500


def failure_of(error: BaseException, *, attempts: int = 1) -> Failure:
    """Return ``error`` as a failure with a one-line message."""
    # Out-of-memory errors of torch, on CUDA and on the CPU, are RuntimeErrors; only their text identifies them.
    text = " ".join(f"{type(error).__name__}: {error}".split())
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text
    cause = FailureCause.OUT_OF_MEMORY if memory else FailureCause.ERROR
    return Failure(cause=cause, message=text[:_LONGEST], attempts=attempts)


@contextmanager
def starting(task_file: str | None) -> Iterator[None]:
    """Convert any error at the start of a worker into one line that names the line of the user's ``task_file``.

    Raises:
        PoolError: for every error that is not an ``AutotuneError``, whose message is already clear.
    """
    try:
        yield
    except AutotuneError:
        raise
    except (Exception, SystemExit) as error:  # a task that ends the process must not look like success
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == task_file]
        where = f" ({task_file}, line {frames[-1].lineno})" if frames else ""
        raise PoolError(f"a worker could not start: {failure_of(error).message}{where}") from error
