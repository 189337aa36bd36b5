"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.store.open import default_url

Database = Annotated[
    str,
    typer.Option(
        "--database",
        "-d",
        envvar="AUTOTUNE_DATABASE",
        help="sqlite:///FILE or postgresql://... to record in.",
        default_factory=default_url,
        show_default="sqlite:///autotune.db",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TaskFile = Annotated[
    Path | None,
    typer.Option("--task-file", help="A Python file that registers tasks. It runs as you, on every worker."),
]
JobReference = Annotated[str, typer.Argument(metavar="JOB", help="Id, start of an id, name, or 'last'.")]


def path_text(path: Path | None) -> str | None:
    """Return a path that other processes understand too, or None if there is none."""
    return str(path.resolve()) if path else None
