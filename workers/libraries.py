"""Optional packages: imports with a clear error, and checks whether they are installed."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from workers.errors import BackendError


@contextmanager
def optional_libraries(user: str, extra: str) -> Iterator[None]:
    """Silence the logs and warnings of packages of an extra that are imported and called inside this context.

    Args:
        user: what needs the packages, for the error message.
        extra: extra of this distribution that installs them.

    Raises:
        BackendError: if a package is not installed.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise BackendError(f"{user} {_needs(error.name or str(error), extra)}") from None
    finally:
        logging.disable(level)


def missing(packages: Sequence[str], extra: str) -> str | None:
    """Return a message about the first of ``packages`` that is not installed, or None if all are installed."""
    absent = next((package for package in packages if importlib.util.find_spec(package) is None), None)
    return None if absent is None else _needs(absent, extra)


def _needs(package: str, extra: str) -> str:
    return (
        f"needs the package {package!r}, which is not installed; install it with: pip install 'quant-autotune[{extra}]'"
    )
