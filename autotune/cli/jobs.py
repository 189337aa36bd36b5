"""Commands about jobs: run, resume, jobs, show, front."""

import itertools
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from autotune.cli.doctor import machine_limits
from autotune.cli.options import AsJson, Database, JobReference, TaskFile, Token, Url, client, path_text, reader
from autotune.cli.task_prints import prints_on_stderr
from autotune.client.actions import check_resumable, submit
from autotune.console.front import print_front, print_remarks, print_state
from autotune.console.output import (
    column_order,
    job_json,
    mix,
    out,
    print_json,
    say,
    state_text,
    trial_json,
    trial_name,
    with_unit,
)
from autotune.console.progress import ConsoleListener
from autotune.jobs.front import find_trial
from autotune.jobs.progress import stage_text
from autotune.jobs.records import JobRecord, JobState, Tally, TrialRecord
from autotune.jobs.remarks import recovered_text, remarks
from autotune.jobs.space import kept_in_full_precision
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS
from autotune.store.base import DriverStore, ReadStore
from autotune.store.open import open_store


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (run, resume, jobs, show, front):
        app.command()(command)


def run(
    job_file: Annotated[Path, typer.Argument(help="Job file in YAML; 'autotune init' writes one.")],
    database: Database,
    task_file: TaskFile = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Replaces search.trials of the job file.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Replaces workers.ray_address of the job file.")] = None,
    as_json: AsJson = False,
) -> str:
    """Run a tuning job on this machine and print the front it found."""
    spec = _override(JobSpec.load(job_file), trials, ray_address)
    if spec.workers.pool == "inline" or spec.workers.ray_address == "local":
        for limit in machine_limits(spec.backends(), spec.search.choices):
            say(limit)
    store = open_store(database)
    try:
        job = submit(store, spec, served=False)
        say(f"Job {job.id} ({job.name}) is recorded in {database}.")
        _drive(store, job, task_file, as_json)
        return job.id
    finally:
        store.close()


def resume(
    job: JobReference,
    database: Database,
    url: Url = None,
    token: Token = None,
    task_file: TaskFile = None,
    as_json: AsJson = False,
) -> None:
    """Continue a stopped job.

    Finished trials are kept. A submitted job goes back into the queue; a job of 'autotune run' continues in this
    process.
    """
    with closing(client(database, url, token)) as jobs:
        record = jobs.find(job)
        if url or record.served:
            print_state(jobs.resume(record.id), as_json)
            return
        check_resumable(jobs.records, record)
    with closing(open_store(database)) as store:
        _drive(store, record, task_file, as_json)


def jobs(
    database: Database,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with closing(reader(database, url, token)) as client:
        found = client.records.jobs(state=state)
        tallies = client.records.tallies([job.id for job in found])
    if as_json:
        print_json({"jobs": [job_json(job, tallies[job.id].searched, tallies[job.id].front) for job in found]})
        return
    if not found and state:
        say(f"No job is {state}.")
        return
    if not found:
        say(f"No jobs yet. Start one with: autotune {'submit' if url else 'run'} job.yaml")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("job", "name", "task", "state", "trials", "front", "created"):
        table.add_column(heading, overflow="fold")
    for job in found:
        tally = tallies[job.id]
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        budget = f"{tally.searched}/{job.spec.search.trials}"
        cells = (job.id, job.name, job.task, state_text(job), budget, str(len(tally.front)), created)
        table.add_row(*map(Text, cells))
    out.print(table)


def show(
    job: JobReference,
    database: Database,
    trial: Annotated[int | None, typer.Argument(help="Trial to show layer by layer.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show one job, or one trial of it layer by layer."""
    with closing(reader(database, url, token)) as client:
        record = client.find(job)
        tally = client.records.tallies([record.id])[record.id]
        if trial is not None:
            found = find_trial(client.records.trials(record.id, numbers=[trial]), trial)
            _show_trial(record, found, tally.front, as_json)
        else:
            _show_job(client.records, record, tally, as_json)


def front(job: JobReference, database: Database, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Print the Pareto front, full precision, the uniform maps and the recipes."""
    with closing(reader(database, url, token)) as client:
        print_front(client.records, client.find(job), as_json)


def _override(spec: JobSpec, trials: int | None, ray_address: str | None) -> JobSpec:
    """Return the job with the values of the command line, validated like any other job."""
    data = spec.dump()
    if trials is not None:
        data["search"]["trials"] = trials
    if ray_address is not None:
        data["workers"] |= {"pool": "ray", "ray_address": ray_address}
    return JobSpec.parse(data, source="command line")


def _drive(store: DriverStore, job: JobRecord, task_file: Path | None, as_json: bool) -> None:
    # Imported here because it imports Optuna, which read-only commands do not need.
    from autotune.search.run import run_job

    stop_like_ctrl_c()
    objective = job.spec.objectives[0]
    try:
        with prints_on_stderr(), ConsoleListener(objective) as listener:
            run_job(store, job.id, listener=listener, task_file=path_text(task_file))
    except KeyboardInterrupt:
        task = f" --task-file {task_file}" if task_file else ""
        say(f"Stopped. Every finished trial is recorded; continue with: autotune resume {job.id}{task}")
        raise
    spent = [event.message for event in store.events(job.id) if event.kind == "time_spent"]
    say(spent[-1])
    print_front(store, store.job(job.id), as_json)


def stop_like_ctrl_c() -> None:
    """Let the signals that end a process, and that of a closed terminal, stop a job as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)


def _show_job(store: ReadStore, job: JobRecord, tally: Tally, as_json: bool) -> None:
    events, trials = store.events(job.id), store.trials(job.id)
    if as_json:
        data: dict[str, Any] = {"job": job_json(job, tally.searched, tally.front), "spec": dict(job.document)}
        data["events"] = [{"at": e.at.isoformat(), "kind": e.kind, "message": e.message} for e in events]
        data["remarks"] = remarks(job, trials)
        print_json(data)
        return
    facts = {
        "job": f"{job.id} ({job.name})",
        "state": _state_and_why(job),
        **({"stage": stage_text(job.stage)} if job.stage else {}),
        "trials": f"{tally.searched} of {job.spec.search.trials} in {job.elapsed_s:.0f} s",
        "front": f"{len(tally.front)} map{'' if len(tally.front) == 1 else 's'}",
        "hardware": job.description.environment.hardware if job.description else "not known yet",
    }
    _print_facts(facts)
    print_remarks(job, trials)
    out.print(Text(f"\n{job.spec.text()}"))
    for event in events:
        out.print(Text(f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}  {event.message}", style="dim"))


def _state_and_why(job: JobRecord) -> str:
    state = state_text(job)
    if state == job.state:
        return state + (f": {job.error}" if job.error else "")
    ahead = "a controller will take it over" if job.served else f"continue it with: autotune resume {job.id}"
    return f"{state}: its driver was lost; {ahead}"


def _show_trial(job: JobRecord, trial: TrialRecord, members: tuple[int, ...], as_json: bool) -> None:
    if as_json:
        print_json({"trial": trial_json(trial, on_front=trial.number in members, with_choices=True)})
        return
    known = sorted((name for name in METRICS if name in trial.figures), key=column_order)
    figures = {METRICS[name].label: with_unit(name, trial.figures[name]) for name in known}
    facts = {"trial": f"{trial.number}: {trial_name(trial)}"}
    facts |= {"map": mix(trial.choices)} if trial.label else {}
    facts |= {"backend": trial.ran_on} if trial.ran_on else {}
    recovered = recovered_text(trial)
    facts |= {"recovery": recovered} if recovered else {}
    facts |= {"remark": trial.message} if trial.message else {}
    _print_facts(facts | figures)
    out.print(_layers_table(job, trial))
    for line in _refused(job, trial.backend):
        out.print(Text(line, style="dim"))


def _layers_table(job: JobRecord, trial: TrialRecord) -> Table:
    """Return a table of the layers, then of modules that are not layers.

    Neighbours that are alike share a row. Empty columns are left out.
    """
    description = job.description.on(trial.backend) if job.description else None
    ranges = description.calibration.ranges if description else {}
    clipped = (description.calibration.clipped if description else None) or {}
    reasons = kept_in_full_precision(job)
    static = {layer for layer, choice in trial.choices.items() if choice.endswith("_static") and layer in ranges}
    kernels = description.kernels if description else {}
    columns = {
        "kernel": {n: kernels[n][choice] for n, choice in trial.choices.items() if choice in kernels.get(n, {})},
        "input range": {layer: f"{ranges[layer].low:.3g} .. {ranges[layer].high:.3g}" for layer in static},
        "clipped on shifted data": {layer: f"{100 * clipped[layer]:.2g} %" for layer in static & clipped.keys()},
        "stays fp32 because": reasons,
    }
    shown = {heading: cells for heading, cells in columns.items() if cells}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "choice", *shown):
        table.add_column(heading, overflow="fold")
    rows = {
        name: (trial.choices.get(name, "fp32"), *(known.get(name, "") for known in shown.values()))
        for name in dict.fromkeys((*trial.choices, *reasons))
    }
    for cells, run in itertools.groupby(rows, key=rows.__getitem__):
        first, *others = run
        through = f" … {others[-1]} ({len(others) + 1} layers)" if others else ""
        table.add_row(*map(Text, (first + through, *cells)))
    return table


def _refused(job: JobRecord, backend: str) -> Iterator[str]:
    """Yield which layers cannot take which of the job's choices on a backend, one line per choice and reason."""
    if job.description is None:
        return
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    description = job.description.on(backend)
    for layer in description.layers:
        for choice, reason in description.refusals.get(layer.name, {}).items():
            if choice in job.spec.search.choices and not layer.frozen_reason:
                layers[choice, reason].append(layer.name)
    for (choice, reason), (first, *others) in layers.items():
        yield f"{first}{f' and {len(others)} more' if others else ''} cannot take {choice}: {reason}."


def _print_facts(facts: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    out.print(table)
