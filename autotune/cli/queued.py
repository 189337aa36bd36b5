"""Commands about jobs in the queue: submit, watch, pause, cancel, clone, plan."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from autotune.cli.options import AsJson, Database, JobReference, Token, Url, client, reader
from autotune.client.base import Client
from autotune.client.follow import Update, check_outcome
from autotune.console.front import print_front, print_state
from autotune.console.output import say
from autotune.console.progress import ConsoleListener
from autotune.errors import JobSpecError
from autotune.jobs.lifecycle import is_interrupted
from autotune.jobs.progress import Listener, Silent
from autotune.jobs.records import JobRecord, JobState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.metrics.units import quantity

Priority = Annotated[int, typer.Option(help="Jobs of higher priority are started first.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (submit, watch, pause, cancel, clone, plan):
        app.command()(command)


def submit(
    job_file: Annotated[Path, typer.Argument(help="Job file in YAML; 'autotune init' writes one.")],
    database: Database,
    url: Url = None,
    token: Token = None,
    key: Annotated[str | None, typer.Option(help="Submitting again with the same key creates no second job.")] = None,
    priority: Priority = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job ends, and print its front.")] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Like --wait, and show the progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a tuning job for 'autotune serve' to run."""
    spec = JobSpec.load(job_file)
    with closing(client(database, url, token)) as jobs:
        job = jobs.submit(spec, key=key, priority=priority)
        print_state(job, as_json and not (wait or watching))
        if wait or watching:
            _wait(jobs, job, as_json, quiet=not watching)


def watch(job: JobReference, database: Database, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Follow a job and print its front; Ctrl-C stops watching, not the job."""
    with closing(reader(database, url, token)) as jobs:
        _wait(jobs, jobs.find(job), as_json, quiet=False)


def pause(job: JobReference, database: Database, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Pause a job; 'autotune resume' continues it."""
    with closing(client(database, url, token)) as jobs:
        _print_state(jobs, jobs.pause(jobs.find(job).id), as_json)


def cancel(
    job: JobReference, database: Database, url: Url = None, token: Token = None, as_json: AsJson = False
) -> None:
    """Cancel a job and keep its results."""
    with closing(client(database, url, token)) as jobs:
        _print_state(jobs, jobs.cancel(jobs.find(job).id), as_json)


def clone(
    job: JobReference,
    database: Database,
    url: Url = None,
    token: Token = None,
    key: Annotated[str | None, typer.Option(help="Cloning again with the same key creates no second job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a copy of a job."""
    with closing(client(database, url, token)) as jobs:
        print_state(jobs.clone(jobs.find(job).id, key=key), as_json)


def _seconds(text: str) -> object:
    """Return a time as seconds."""
    try:
        return quantity(text, "s")
    except ValueError as error:
        raise typer.BadParameter(f"the time {error}") from None


def plan(
    job: JobReference,
    database: Database,
    trials: Annotated[int | None, typer.Option(help="Most trials of the search.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(parser=_seconds, metavar="TIME", help="Most time of the search: seconds, or 5min."),
    ] = None,
    no_time_limit: Annotated[bool, typer.Option("--no-time-limit", help="Remove the time limit.")] = False,
    priority: Annotated[int | None, typer.Option(help="Jobs of higher priority are started first.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Change a job's budget or priority, also while it runs."""
    wanted = {"trials": trials, "time_limit_s": time_limit}
    search: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if no_time_limit:
        if time_limit is not None:
            raise JobSpecError("--time-limit and --no-time-limit contradict each other; pass only one of them")
        search["time_limit_s"] = None
    if not search and priority is None:
        raise JobSpecError("nothing to change: pass --trials, --time-limit, --no-time-limit or --priority")
    with closing(client(database, url, token)) as jobs:
        changed = jobs.change_plan(jobs.find(job).id, priority=priority, **search)
        say(_planned(changed))
        _print_state(jobs, changed, as_json)


def _planned(job: JobRecord) -> str:
    search = job.spec.search
    limit = "" if search.time_limit_s is None else f", {search.time_limit_s:g} s"
    return f"Budget: {search.trials} trials{limit}. Priority: {job.priority}."


def _print_state(jobs: Client, job: JobRecord, as_json: bool) -> None:
    print_state(job, as_json, jobs.records.tallies([job.id])[job.id] if as_json else None)


def _wait(jobs: Client, job: JobRecord, as_json: bool, *, quiet: bool) -> None:
    """Wait until a job finishes, and print its front.

    Raises:
        JobFailedError: if it failed.
        OrderedError: if it was paused or cancelled.
    """
    if is_interrupted(job, now()) and not job.served:
        say(f"The job's driver was lost; continue it with: autotune resume {job.id}")
    try:
        if quiet:
            last = _follow(jobs, job, Silent())
        else:
            with ConsoleListener(job.spec.objectives[0]) as listener:
                last = _follow(jobs, job, listener)
    except KeyboardInterrupt:
        say(f"The job continues; watch it with: autotune watch {job.id}")
        raise
    if last.progress.done:
        print_front(jobs.records, jobs.records.job(job.id), as_json)
    check_outcome(last)


def _follow(jobs: Client, job: JobRecord, listener: Listener) -> Update:
    searches = False
    for update in jobs.follow(job.id):
        for event in update.events:
            listener.stage(event.message)
        if update.state is JobState.QUEUED:
            listener.stage("Waiting in the queue")
        if update.progress.done and update.state.is_live and not searches:
            listener.stage("Searching")
            searches = True
        if update.stage:
            listener.step(update.stage)
        if update.progress.done:
            listener.trial(update.progress)
    return update
