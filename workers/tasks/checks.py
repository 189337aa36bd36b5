"""Checks of the built-in tasks: their parameters, and the packages they need."""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from workers.errors import TaskError

#: Environment variable that names the folder to which job files are confined; unset if users run only their own jobs.
DATA_FOLDER = "AUTOTUNE_DATA"


def contained(name: str, path: str) -> Path:
    """Return the path named by a task parameter; if there is a data folder, relative to it and inside it.

    Raises:
        TaskError: if the path is outside the data folder.
    """
    if not os.environ.get(DATA_FOLDER):
        return Path(path)
    folder = Path(os.environ[DATA_FOLDER]).resolve()
    found = (folder / path).resolve()
    if not found.is_relative_to(folder):
        raise TaskError(
            f"task parameter {name!r} must be a path inside the workers' folder ${DATA_FOLDER}, {str(folder)!r}, "
            f"but got {path!r}; put the file there"
        )
    return found


def read_text(name: str, path: str, *, kind: str = "a file") -> str:
    """Return the UTF-8 text of a file named by a task parameter.

    Args:
        name: name of the parameter.
        path: its value; see ``contained``.
        kind: kind of file that the error message asks for.

    Raises:
        TaskError: if the file cannot be read, or is outside the data folder.
    """
    try:
        return contained(name, path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the {name} {path!r}: {error}; give {kind} of UTF-8 text") from None


def require_integer(name: str, value: object, *, low: int, high: int) -> None:
    """Check a task parameter from a job file.

    Raises:
        TaskError: if ``value`` is not an integer from ``low`` to ``high``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TaskError(f"task parameter {name!r} must be an integer from {low} to {high}, but got {value!r}")


def require_text(name: str, value: object) -> None:
    """Check a task parameter from a job file.

    Raises:
        TaskError: if ``value`` is not text.
    """
    if not isinstance(value, str):
        raise TaskError(f"task parameter {name!r} must be text, but got {value!r}")


def require_flag(name: str, value: object) -> None:
    """Check a task parameter from a job file.

    Raises:
        TaskError: if ``value`` is neither true nor false.
    """
    if not isinstance(value, bool):
        raise TaskError(f"task parameter {name!r} must be true or false, but got {value!r}")


def require_number(name: str, value: object, *, low: float, high: float) -> None:
    """Check a task parameter from a job file.

    Raises:
        TaskError: if ``value`` is not a number from ``low`` to ``high``.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise TaskError(f"task parameter {name!r} must be a number from {low:g} to {high:g}, but got {value!r}")


@contextlib.contextmanager
def extra_packages(extra: str = "tasks") -> Iterator[None]:
    """Silence the logs of an extra's packages that are imported inside this context.

    If torchao is installed, transformers imports it, and torchao logs about kernels for missing hardware.

    Raises:
        TaskError: if a package is not installed, or if torchvision, which transformers imports, does not fit PyTorch.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if (misfit := _misfit(error)) is not None:
            raise TaskError(
                f"torchvision was built for another PyTorch than the installed {metadata.version('torch')} ({misfit}); "
                "reinstall it from the same package index as PyTorch: pip install --force-reinstall --no-deps "
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
        TaskError: if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _missing(package)
    return Path(spec.origin).parent


def _misfit(error: BaseException | None) -> str | None:
    """Return PyTorch's message about missing torchvision operators if they caused the error, else None."""
    while error is not None and "operator torchvision::" not in str(error):
        error = error.__cause__ or error.__context__
    return None if error is None else str(error)


def _missing(package: str, extra: str = "tasks") -> TaskError:
    return TaskError(
        f"this task needs the package {package!r}, which is not installed; "
        f"install it with: pip install 'quant-autotune[{extra}]'"
    )
