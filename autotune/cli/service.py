"""Commands that run the service: serve, api."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import Database, TaskFile, path_text
from autotune.console.output import say
from autotune.store.base import Store
from autotune.store.open import open_store
from workers.tasks import load_task_file
from workers.tasks.checks import DATA_FOLDER

if TYPE_CHECKING:
    from autotune.api.server import ApiServer

HostName = Annotated[
    list[str] | None,
    typer.Option("--host-name", help="Host name under which clients may reach this service; may be repeated."),
]
NoAuthentication = Annotated[
    bool, typer.Option("--no-authentication", help="Allow requests without a token from this machine.")
]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Write logs as JSON, one object per line.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (serve, api):
        app.command()(command)


def serve(
    database: Database,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Most jobs that run at the same time.",
            show_default="1 on this machine's CPU, whose jobs take turns to measure; otherwise 4",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster that all jobs share; by default, one is started on this machine."
        ),
    ] = None,
    task_file: TaskFile = None,
    lease: Annotated[
        float, typer.Option(min=1.0, help="Seconds without a sign of life after which a controller is replaced.")
    ] = 30.0,
    listen: Annotated[
        str | None, typer.Option(help="ADDRESS:PORT on which to serve the HTTP API, such as 127.0.0.1:8123.")
    ] = None,
    host_name: HostName = None,
    no_authentication: NoAuthentication = False,
    json_logs: JsonLogs = False,
) -> None:
    """Run queued jobs until stopped; several of these processes can share a database."""
    from autotune.service import logs
    from autotune.service.controller import Controller
    from autotune.service.settings import ServiceSettings

    logs.configure(as_json=json_logs)
    # Other users submit jobs that run here, so job files may name only files in this process's folder.
    os.environ.setdefault(DATA_FOLDER, str(Path.cwd()))
    settings = ServiceSettings(
        database=database,
        jobs=at_once or _most_jobs(ray_address),
        ray_address=ray_address,
        task_file=path_text(task_file),
        lease_s=lease,
        json_logs=json_logs,
    )
    with closing(open_store(database)) as store:
        server = listen and _api_server(
            store, database, listen, host_name, no_authentication, task_file, runs_jobs=True
        )
        controller = Controller(store, settings)
        _on_stop(controller.stop)
        if server:
            server.start()
        controller.run()
        if server:
            server.stop()


def _most_jobs(ray_address: str | None) -> int:
    """Return how many jobs run at the same time if nobody says: jobs on one CPU would only wait for each other."""
    from workers.device import gpu

    return 4 if ray_address or gpu.models() else 1


def api(
    database: Database,
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT to listen on.")] = "127.0.0.1:8123",
    task_file: TaskFile = None,
    host_name: HostName = None,
    no_authentication: NoAuthentication = False,
    json_logs: JsonLogs = False,
) -> None:
    """Serve the HTTP API until stopped."""
    from autotune.service import logs

    logs.configure(as_json=json_logs)
    ended = threading.Event()
    with closing(open_store(database)) as store:
        server = _api_server(store, database, listen, host_name, no_authentication, task_file)
        _on_stop(ended.set)
        server.start()
        ended.wait()
        server.stop()


def _api_server(
    store: Store,
    database: str,
    listen: str,
    host_names: list[str] | None,
    no_authentication: bool,
    task_file: Path | None,
    *,
    runs_jobs: bool = False,
) -> "ApiServer":
    from autotune.api.server import ApiServer
    from autotune.api.settings import LIMITS, ApiSettings, parse_listen

    address, port = parse_listen(listen)
    if task_file:
        load_task_file(str(task_file))
    settings = ApiSettings(
        address=address,
        port=port,
        host_names=tuple(host_names or ()),
        authentication=not no_authentication,
        # Controllers elsewhere may have a task file that this process does not have.
        limits=replace(LIMITS, unknown_tasks=not (runs_jobs or task_file)),
    )
    if settings.authentication and not store.tokens():
        say("There are no tokens yet; create one with: autotune token add NAME")
    return ApiServer(store, database, settings)


def _on_stop(stop: Callable[[], None]) -> None:
    """Call ``stop`` on SIGINT and SIGTERM."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
