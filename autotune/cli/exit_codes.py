"""Exit codes of the command line, one per kind of error."""

from autotune.errors import (
    AccessError,
    ConflictError,
    JobSpecError,
    LeaseLostError,
    NoFeasibleMapError,
    NotFoundError,
    StoreError,
)
from autotune.jobs.lifecycle import OrderedError
from search_spaces.errors import AutotuneError, ChoiceError, MapError, SpaceError
from workers.errors import BackendError, PoolError, TaskError

#: The command failed while it ran.
FAILED = 1
#: Stopped by Ctrl-C; a running job can be resumed.
INTERRUPTED = 130

#: Error -> exit code and its meaning; the first entry that an error is an instance of counts.
EXIT_CODES: dict[type[AutotuneError], tuple[int, str]] = {
    JobSpecError: (2, "the job file or an argument is invalid"),
    SpaceError: (2, "the job file or an argument is invalid"),
    ChoiceError: (2, "the job file or an argument is invalid"),
    TaskError: (2, "the job file or an argument is invalid"),
    NotFoundError: (3, "no such job, trial or file"),
    NoFeasibleMapError: (4, "no map satisfies the constraints"),
    MapError: (5, "the map cannot be read or exported, or its promised figures do not hold"),
    BackendError: (6, "the workers or their hardware cannot run the job"),
    PoolError: (6, "the workers or their hardware cannot run the job"),
    StoreError: (7, "the database or the service cannot be reached, read or written"),
    ConflictError: (8, "the job's current state does not allow it"),
    LeaseLostError: (8, "the job's current state does not allow it"),
    OrderedError: (9, "the job was paused or cancelled by its user"),
    AccessError: (10, "the service refuses the request: the token is missing, invalid or does not allow it"),
}


def exit_code(error: AutotuneError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, (code, _) in EXIT_CODES.items() if isinstance(error, kind)), FAILED)
