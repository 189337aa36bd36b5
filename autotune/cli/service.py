"""Commands about the service: serve, submit, watch, pause, cancel, clone, plan."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from autotune import jobs
from autotune.cli.options import AsJson, Database, TaskFile
from autotune.cli.output import job_json, print_json, say
from autotune.job_spec import JobSpec
from autotune.store.open import open_store


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (serve, submit):
        app.command()(command)


def serve(
    database: Database,
    at_once: Annotated[int, typer.Option("--jobs", min=1, help="Jobs that run at the same time at most.")] = 4,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster that all jobs share; without it, one is started on this machine.")
    ] = None,
    task_file: TaskFile = None,
    lease: Annotated[float, typer.Option(min=1.0, help="Seconds after which a silent controller is replaced.")] = 30.0,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Write logs as JSON, one object a line.")] = False,
) -> None:
    """Run the jobs in the queue until it is stopped; any number of these may share a database."""
    from autotune.service import logs
    from autotune.service.controller import Controller
    from autotune.service.settings import ServiceSettings

    logs.configure(as_json=json_logs)
    settings = ServiceSettings(
        database=database,
        jobs=at_once,
        ray_address=ray_address,
        task_file=str(task_file.resolve()) if task_file else None,
        lease_s=lease,
        json_logs=json_logs,
    )
    store = open_store(database)
    controller = Controller(store, settings)

    def stop(number: int, frame: FrameType | None) -> None:
        controller.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        controller.run()
    finally:
        store.close()


def submit(
    job_file: Annotated[Path, typer.Argument(help="Job file in YAML; 'autotune init' writes one.")],
    database: Database,
    key: Annotated[str | None, typer.Option(help="Submitting again with the same key makes no second job.")] = None,
    priority: Annotated[int, typer.Option(help="Jobs of higher priority are started first.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Queue a tuning job for 'autotune serve' to run."""
    store = open_store(database)
    try:
        job = jobs.submit(store, JobSpec.load(job_file), key=key, priority=priority)
        say(f"Job {job.id} ({job.name}) is {job.state}.")
        if as_json:
            print_json({"job": job_json(job, 0)})
    finally:
        store.close()
