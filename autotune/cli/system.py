"""Commands about the installation: tasks, schema, init, doctor, dashboard, db."""

import dataclasses
import importlib.resources
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from autotune.cli.doctor import Mark, choice_speeds, examine
from autotune.cli.options import AsJson, Database, TaskFile, Token, Url, one_of
from autotune.cli.task_prints import prints_on_stderr
from autotune.client.connect import connect_to_service
from autotune.console.output import out, print_json, say
from autotune.errors import ConflictError, JobSpecError
from autotune.jobs.spec import JobSpec
from autotune.store.open import migrate
from autotune.tuning.dashboard import NICENESS, command
from workers.tasks import list_tasks, load_task_file, task_info, task_names

if TYPE_CHECKING:
    from workers.backends.cpu.speed import Speed

#: Mark of a finding -> its style.
_MARKS = {Mark.OK: "green", Mark.NOTE: "yellow", Mark.PROBLEM: "bold red"}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(tasks)
    app.command()(schema)
    app.command()(init)
    app.command()(doctor)
    app.command()(dashboard)
    database = typer.Typer(help="Manage the database.", no_args_is_help=True)
    database.command("upgrade")(db_upgrade)
    app.add_typer(database, name="db")


def tasks(task_file: TaskFile = None, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """List the tasks that a job can name, with their parameters."""
    with prints_on_stderr():
        if task_file:
            load_task_file(str(task_file))
        if url:
            with closing(connect_to_service(url, token)) as client:
                infos = client.tasks()
        else:
            infos = list_tasks()
    if as_json:
        print_json({"tasks": [{"name": i.name, "summary": i.summary, "parameters": dict(i.parameters)} for i in infos]})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "what it tunes", "parameters"):
        table.add_column(heading, overflow="fold")
    for info in infos:
        parameters = "\n".join(f"{name}: {json.dumps(default)}" for name, default in info.parameters.items())
        table.add_row(Text(info.name), Text(info.summary), Text(parameters))
    out.print(table)


def schema(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which this command always does.")] = False,
) -> None:
    """Print the JSON schema of job files, for editors and programs."""
    print(json.dumps(JobSpec.json_schema(), indent=2))


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("job.yaml"),
    task: Annotated[
        str, typer.Option(help="Task the job tunes; see 'autotune tasks'.", autocompletion=one_of(task_names))
    ] = "minilm-lee",
    full: Annotated[bool, typer.Option("--full", help="List every key with its meaning.")] = False,
    task_file: TaskFile = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented job file to start from."""
    if task_file:
        with prints_on_stderr():
            load_task_file(str(task_file))
    if path.exists():
        raise ConflictError(f"{str(path)!r} already exists; delete it or name another file")
    task_info(task)
    name = "full_job_template.yaml" if full else "job_template.yaml"
    template = importlib.resources.files("autotune.cli").joinpath(name).read_text(encoding="utf-8")
    try:
        path.write_text(template.replace("minilm-lee", task), encoding="utf-8")
    except OSError as error:
        raise JobSpecError(f"cannot write {str(path)!r}: {error.strerror}") from None
    if as_json:
        print_json({"path": str(path), "task": task})
    say(f"Wrote {path}. Next: autotune run {path}" + (f" --task-file {task_file}" if task_file else ""))


def doctor(database: Database, as_json: AsJson = False) -> None:
    """Check that this machine can tune, and suggest how to fix problems."""
    with prints_on_stderr():
        findings, speeds = examine(database), choice_speeds()
    if as_json:
        choices = [dataclasses.asdict(speed) for speed in speeds]
        data = {
            "findings": [{"check": f.name, "ok": f.ok, "mark": f.mark.value, "finding": f.text} for f in findings],
            "choices": choices,
        }
        print_json({"ok": all(f.ok for f in findings), **data})
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("", "check", "finding"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            table.add_row(Text(finding.mark, style=_MARKS[finding.mark]), Text(finding.name), Text(finding.text))
        out.print(table)
        out.print(_speed_table(speeds))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _speed_table(speeds: Sequence["Speed"]) -> Table:
    """Return a table of the speedup of each choice over full precision, and its kernels."""
    from workers.backends.cpu.speed import ROWS  # imports PyTorch, which takes seconds
    from workers.backends.typical_layer import FEATURES, OUTPUTS

    title = f"Speedup of a linear layer over fp32, {FEATURES} to {OUTPUTS} features"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    table.add_column("choice")
    for rows in ROWS:
        table.add_column(f"{rows} row{'s' if rows > 1 else ''}", overflow="fold")
    for speed in speeds:
        if speed.refused is None:
            cells = [f"{1.0 / speed.ratios[rows]:.2f}x  {speed.kernels[rows]}" for rows in ROWS]
            table.add_row(speed.choice, *map(Text, cells))
    refused = [f"{speed.choice}: {speed.refused}" for speed in speeds if speed.refused is not None]
    table.caption, table.caption_justify = "\n".join(refused), "left"
    return table


def dashboard(
    database: Database,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8501,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    no_authentication: Annotated[
        bool, typer.Option("--no-authentication", help="Allow an address that others can reach, without a password.")
    ] = False,
) -> None:
    """Serve the dashboard on this machine; Ctrl-C stops it."""
    if address not in _LOOPBACK and not no_authentication:
        raise JobSpecError(
            f"the dashboard has no login, so it listens on loopback only, but got address {address!r}; put it behind "
            "a proxy that authenticates, then add --no-authentication"
        )
    os.nice(NICENESS)
    say(f"Dashboard on http://{address}:{port} reading {database}. Ctrl-C stops it.")
    # Replaces this process, so that a signal reaches Streamlit and nothing keeps the port open.
    os.execve(sys.executable, command(address, port), os.environ | {"AUTOTUNE_DATABASE": database})


def db_upgrade(database: Database, as_json: AsJson = False) -> None:
    """Create or upgrade the database's tables."""
    revision = migrate(database)
    if as_json:
        print_json({"revision": revision})
    say(f"The database is at revision {revision}.")
