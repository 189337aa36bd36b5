"""The command that tunes a checkpoint: tune."""

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
import yaml

from autotune.cli.jobs import run
from autotune.cli.options import AsJson, Database
from autotune.console.output import mix, say
from autotune.errors import ConflictError, JobSpecError
from autotune.jobs.recommendation import recommended
from autotune.maps import map_file
from autotune.store.artifacts import learned_weights
from autotune.store.open import open_store
from autotune.text_files import write_text
from autotune.tuning.job import Settings

#: Files in the folder of a result.
_JOB, _MAP = "job.yaml", "map.json"


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(tune)


def tune(
    checkpoint: Annotated[str, typer.Argument(help="Folder, GGUF file, or name on the hub.")],
    database: Database,
    data: Annotated[Path | None, typer.Option(help="Text file, or folder of images or audio, to run it on.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Such as accuracy_drop=1% or latency_p95_ms=20ms; may be repeated."),
    ] = None,
    budget: Annotated[str, typer.Option(help="Time of the search, such as 90s, 5min or 1h.")] = "5min",
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Runtime to search, or all; may be repeated. The default is PyTorch."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the task, such as language=en; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; the default is named after the checkpoint.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tune a checkpoint: write its job file, run it, and write the recommended map beside it."""
    # Imported here because it imports PyTorch, which read-only commands do not need.
    from autotune.tuning.checkpoint import checkpoint_job

    parameters = _pairs("--parameter", parameter)
    spec = checkpoint_job(
        # Links are kept: in the hub's cache, files are links to blobs that have no ending.
        os.path.abspath(checkpoint) if Path(checkpoint).exists() else checkpoint,  # noqa: PTH100 - resolves ".." only
        None if data is None else os.path.abspath(data),  # noqa: PTH100 - the same
        Settings(
            limits=_pairs("--limit", limit),
            budget=budget,
            backend=backend[0] if backend and len(backend) == 1 else backend,
            job={"task": {"parameters": {name: yaml.safe_load(value) for name, value in parameters.items()}}},
        ),
    )
    folder = output or Path(f"{spec.name}-tuned")
    if (folder / _JOB).exists():
        raise ConflictError(
            f"{str(folder / _JOB)!r} exists; run it with 'autotune run', or name another folder with --output"
        )
    text = yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_unset=True), sort_keys=False)
    write_text(folder / _JOB, text)
    say(f"{text}\nWrote {folder / _JOB}; edit it and run it again with: autotune run {folder / _JOB}")
    job_id = run(folder / _JOB, database, as_json=as_json)
    with closing(open_store(database, read_only=True)) as store:
        job, trials = store.job(job_id), store.trials(job_id)
        best = recommended(trials, job.spec)
        learned = learned_weights(store, best) if best else b""
    if best is not None:
        map_file.write(map_file.map_document(job, best), folder / _MAP, learned)
        say(f"Wrote trial {best.number} ({mix(best.choices)}) to {folder / _MAP}.")
        if best.backend:
            say(f"It runs on {best.backend}; write its model with: autotune export {job_id} --pick {best.number}")


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """Return what an option that may be repeated names, such as ``accuracy_drop=1%``."""
    pairs = [text.partition("=") for text in given or ()]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise JobSpecError(f"{option} must be NAME=VALUE, such as accuracy_drop=1%, but got {wrong[0]!r}")
    return {name: value for name, _, value in pairs}
