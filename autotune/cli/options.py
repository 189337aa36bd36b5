"""Options that several commands share."""

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from autotune.client.base import Client
from autotune.client.connect import connect, connect_to_service
from autotune.errors import NotFoundError
from autotune.store.open import default_url
from search_spaces.errors import AutotuneError

#: Most jobs that a shell is offered, newest first.
_MOST_COMPLETED = 50


def _unless_database(context: typer.Context, url: str | None) -> str | None:
    """Return the URL of a service; None if it comes from the environment but the command line names a database."""
    sources = [context.get_parameter_source(name) for name in ("url", "database")]
    named = [source and source.name for source in sources]
    return None if named == ["ENVIRONMENT", "COMMANDLINE"] else url


def _jobs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return ids and names of jobs that begin with what was typed in a shell, each with a help text."""
    given = context.params
    url = given.get("url") or (None if given.get("database") else os.environ.get("AUTOTUNE_URL"))
    token = given.get("token") or os.environ.get("AUTOTUNE_TOKEN")
    try:
        with closing(reader(given.get("database") or default_url(), url, token)) as service:
            jobs = service.records.jobs(limit=_MOST_COMPLETED)
    except AutotuneError:  # there is nothing to complete, and no place for a message
        return []
    offered = [("last", "the newest job"), *((job.id, f"{job.name}, {job.state}") for job in jobs)]
    offered += [(name, "the newest job of this name") for name in dict.fromkeys(job.name for job in jobs)]
    return [(value, about) for value, about in offered if value.startswith(incomplete)]


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a completion by the names that a function returns."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


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
    str,
    typer.Argument(metavar="JOB", help="Id, start of an id, name, or 'last' for the newest job.", autocompletion=_jobs),
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
