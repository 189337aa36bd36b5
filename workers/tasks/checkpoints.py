"""Checkpoints of transformers, as named by job files: a folder, or a name on the hub."""

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from workers.errors import TaskError
from workers.tasks.checks import contained, extra_packages
from workers.tasks.gguf_files import parsed_once


def source(checkpoint: str) -> str:
    """Return a checkpoint's folder, or its name on the hub if no such folder exists."""
    folder = contained("checkpoint", checkpoint)
    return str(folder) if folder.exists() else checkpoint


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Import and use transformers in this context, without progress bars."""
    with extra_packages():
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            with (
                parsed_once(),
                contextlib.redirect_stderr(io.StringIO()),
            ):  # the progress bar of GGUF files ignores the setting
                yield
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def explained(what: str, checkpoint: str, tiny: Iterable[str]) -> Iterator[None]:
    """Load a part of a checkpoint in this context.

    Raises:
        TaskError: if it cannot be loaded.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise TaskError(
            f"cannot load the {what} of checkpoint {checkpoint!r}: {first}; give a folder of safetensors, a name on "
            f"the hub, or one of {', '.join(tiny)}"
        ) from None


def hub_file(name: str, files: Iterable[str], *, checkpoint: str) -> Path:
    """Return the first of ``files`` that the hub's cache or the hub has under a name.

    Args:
        name: of a checkpoint on the hub, maybe with its owner.
        files: names of files in it.
        checkpoint: what the user named, for error messages.

    Raises:
        TaskError: if neither the hub nor its cache has any of them under that name.
    """
    with quiet_transformers():
        from huggingface_hub import constants
        from transformers.utils.hub import cached_file

        reason = ""
        # The cache first, because without network the hub is asked in vain for half a minute.
        for here, file in itertools.product((True, False), files):
            try:
                return Path(str(cached_file(name, file, local_files_only=here)))
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0].rstrip(".")
                if not here and "does not appear to have" not in reason:
                    break  # what the hub, or its absence, says of every file
        hub = "is not asked, because HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"says: {reason}"
    raise TaskError(
        f"there is no file or folder {checkpoint!r}, and no such checkpoint in the cache {constants.HF_HUB_CACHE!r}; "
        f"the hub {hub}. Check the name, or give the path of a checkpoint"
    )
