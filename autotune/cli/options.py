"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.client.base import Client
from autotune.client.connect import connect, connect_to_service
from autotune.errors import NotFoundError
from autotune.store.open import default_url


def _unless_database(context: typer.Context, url: str | None) -> str | None:
    """Return the URL of a service; None if it comes from the environment but the command line names a database."""
    sources = [context.get_parameter_source(name) for name in ("url", "database")]
    named = [source and source.name for source in sources]
    return None if named == ["ENVIRONMENT", "COMMANDLINE"] else url


def _existing(path: Path | None) -> Path | None:
    """Return the path of an existing file; without this check, a job would be recorded first and then fail."""
    if path is not None and not path.is_file():
        raise NotFoundError(
            f"there is no task file {str(path.absolute())!r}; --task-file takes a path from this folder"
        )
    return path


Database = Annotated[
    str,
    typer.Option(
        "--database",
        "-d",
        envvar="AUTOTUNE_DATABASE",
        help="Database to use: sqlite:///FILE or postgresql://...",
        default_factory=default_url,
        show_default="sqlite:///autotune.db",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="AUTOTUNE_URL", callback=_unless_database, help="http://HOST:PORT of a service, instead of a database."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(envvar="AUTOTUNE_TOKEN", help="Access token of the service; the environment variable is safer."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TaskFile = Annotated[
    Path | None,
    typer.Option(
        "--task-file", callback=_existing, help="A Python file that registers tasks. It runs as you, on every worker."
    ),
]
JobReference = Annotated[
    str, typer.Argument(metavar="JOB", help="Id, start of an id, name, or 'last' for the newest job.")
]


def reader(database: str, url: str | None, token: str | None) -> Client:
    """Return a client that only reads."""
    return connect_to_service(url, token) if url else connect(database, read_only=True)


def client(database: str, url: str | None, token: str | None) -> Client:
    """Return a client that can change jobs."""
    return connect_to_service(url, token) if url else connect(database)


def path_text(path: Path | None) -> str | None:
    """Return the absolute path as text, for other processes; None without a path."""
    return str(path.resolve()) if path else None
