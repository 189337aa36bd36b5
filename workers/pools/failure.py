"""Turn what went wrong in a measurement into a recorded failure."""

from workers.measurement import Failure, FailureCause

_LONGEST = 500


def failure_of(error: BaseException, *, attempts: int = 1) -> Failure:
    """Return the failure that ``error`` amounts to, told in one line."""
    # torch.cuda.OutOfMemoryError and torch's CPU allocator are RuntimeErrors that only their text gives away.
    text = " ".join(f"{type(error).__name__}: {error}".split())
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text
    cause = FailureCause.OUT_OF_MEMORY if memory else FailureCause.ERROR
    return Failure(cause=cause, message=text[:_LONGEST], attempts=attempts)
