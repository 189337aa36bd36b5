"""What the built-in tasks check before they start: their parameters and the packages they need."""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

from workers.errors import TaskError


def require_integer(name: str, value: object, *, low: int, high: int) -> None:
    """Check a task parameter that came from a job file.

    Raises:
        TaskError: if ``value`` is no integer from ``low`` to ``high``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TaskError(f"task parameter {name!r} must be an integer from {low} to {high}, but got {value!r}")


@contextlib.contextmanager
def extra_packages() -> Iterator[None]:
    """Import packages of the ``tasks`` extra inside this context, without what they log.

    With torchao installed, transformers loads it, and it tells of kernels for hardware that is not here.

    Raises:
        TaskError: if one is not installed.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except ImportError as error:
        raise _missing(error.name or str(error)) from None
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


def _missing(package: str) -> TaskError:
    return TaskError(
        f"this task needs the package {package!r}, which is not installed; "
        "install what the built-in tasks need with: pip install 'quant-autotune[tasks]'"
    )
