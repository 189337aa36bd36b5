"""What the built-in tasks check before they start: their parameters and the packages they need."""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from workers.errors import TaskError

#: Environment variable with the folder that files named by jobs must be in; unset where a user runs only their own.
DATA_FOLDER = "AUTOTUNE_DATA"


def contained(name: str, path: str) -> Path:
    """Return the path that a task parameter names, relative to the data folder and inside it if there is one.

    Raises:
        TaskError: if it is outside.
    """
    if not os.environ.get(DATA_FOLDER):
        return Path(path)
    folder = Path(os.environ[DATA_FOLDER]).resolve()
    found = (folder / path).resolve()
    if not found.is_relative_to(folder):
        raise TaskError(
            f"task parameter {name!r} must be a path inside the folder ${DATA_FOLDER} of the workers, {str(folder)!r}, "
            f"but got {path!r}; put the file there"
        )
    return found


def read_text(name: str, path: str, *, kind: str = "a file") -> str:
    """Return the UTF-8 text of a file that a task parameter names.

    Args:
        name: of the parameter.
        path: see ``contained``.
        kind: what to give instead, for messages.

    Raises:
        TaskError: if it cannot be read, or is outside the data folder.
    """
    try:
        return contained(name, path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the {name} {path!r}: {error}; give {kind} of UTF-8 text") from None


def require_integer(name: str, value: object, *, low: int, high: int) -> None:
    """Check a task parameter that came from a job file.

    Raises:
        TaskError: if ``value`` is no integer from ``low`` to ``high``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TaskError(f"task parameter {name!r} must be an integer from {low} to {high}, but got {value!r}")


def require_text(name: str, value: object) -> None:
    """Check a task parameter that came from a job file.

    Raises:
        TaskError: if ``value`` is no text.
    """
    if not isinstance(value, str):
        raise TaskError(f"task parameter {name!r} must be text, but got {value!r}")


def require_flag(name: str, value: object) -> None:
    """Check a task parameter that came from a job file.

    Raises:
        TaskError: if ``value`` is not true or false.
    """
    if not isinstance(value, bool):
        raise TaskError(f"task parameter {name!r} must be true or false, but got {value!r}")


def require_number(name: str, value: object, *, low: float, high: float) -> None:
    """Check a task parameter that came from a job file.

    Raises:
        TaskError: if ``value`` is no number from ``low`` to ``high``.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise TaskError(f"task parameter {name!r} must be a number from {low:g} to {high:g}, but got {value!r}")


@contextlib.contextmanager
def extra_packages(extra: str = "tasks") -> Iterator[None]:
    """Import packages of an extra inside this context, without what they log.

    With torchao installed, transformers loads it, and it tells of kernels for hardware that is not here.

    Raises:
        TaskError: if one is not installed, or if torchvision, which transformers imports too, does not fit PyTorch.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if (misfit := _misfit(error)) is not None:
            raise TaskError(
                f"torchvision was built for another PyTorch than the installed {metadata.version('torch')} ({misfit}); "
                "install it again from the same package index as PyTorch: pip install --force-reinstall --no-deps "
                "torchvision"
            ) from None
        if isinstance(error, ImportError):
            raise _missing(error.name or str(error), extra) from None
        raise
    finally:
        logging.disable(level)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        TaskError: if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _missing(package)
    return Path(spec.origin).parent


def _misfit(error: BaseException | None) -> str | None:
    """Return what PyTorch says of operators that torchvision lacks, if an error was caused by that."""
    while error is not None and "operator torchvision::" not in str(error):
        error = error.__cause__ or error.__context__
    return None if error is None else str(error)


def _missing(package: str, extra: str = "tasks") -> TaskError:
    return TaskError(
        f"this task needs the package {package!r}, which is not installed; "
        f"install what it needs with: pip install 'quant-autotune[{extra}]'"
    )
