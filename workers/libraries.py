"""Optional packages, imported where they are needed."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from workers.errors import BackendError


@contextmanager
def optional_libraries(user: str, extra: str) -> Iterator[None]:
    """Import and call packages of an extra inside this context, without what they log and warn of.

    Args:
        user: what needs them, for people.
        extra: of this distribution, that installs them.

    Raises:
        BackendError: if one is not installed.
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
    """Return that the first of ``packages`` that is not installed is needed, or None if all are installed."""
    absent = next((package for package in packages if importlib.util.find_spec(package) is None), None)
    return None if absent is None else _needs(absent, extra)


def _needs(package: str, extra: str) -> str:
    return (
        f"needs the package {package!r}, which is not installed; install it with: pip install 'quant-autotune[{extra}]'"
    )
