"""Optional packages, imported where they are needed."""

import logging
import warnings
from collections.abc import Iterator
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
        raise BackendError(
            f"{user} needs the package {error.name or str(error)!r}, which is not installed; "
            f"install it with: pip install 'quant-autotune[{extra}]'"
        ) from None
    finally:
        logging.disable(level)
