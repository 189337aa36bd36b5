"""Checkpoints of transformers, as named by job files: a folder, or a name on the hub."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def hub_configuration(name: str, files: Iterable[str]) -> Mapping[str, Any]:
    """Return the first of a checkpoint's configuration ``files`` on the hub.

    Raises:
        TaskError: if the hub has none of them under that name.
    """
    with quiet_transformers():
        from transformers.utils.hub import cached_file

        reasons = []
        for file in files:
            try:
                path = cached_file(name, file)
                return dict(json.loads(Path(str(path)).read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                reasons.append(str(error).strip().partition("\n")[0])
    raise TaskError(f"there is no folder {name!r}, and the hub cannot be asked for it: {reasons[0]}")
