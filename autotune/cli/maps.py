"""Commands that export maps and jobs: export, verify, optuna-export, mlflow-export."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from autotune.cli.options import AsJson, Database, JobReference, TaskFile, Token, Url, one_of, path_text, reader
from autotune.cli.task_prints import prints_on_stderr
from autotune.console.output import figure_text, mix, out, print_json, say, with_unit
from autotune.console.progress import ConsoleListener
from autotune.errors import JobSpecError
from autotune.exporters import exporter_names
from autotune.jobs.front import PICKS, pick
from autotune.jobs.recommendation import default_pick
from autotune.jobs.records import FrontRecord, JobRecord, TrialKind, TrialRecord
from autotune.jobs.remarks import recovered_text
from autotune.maps import map_file
from autotune.metrics.catalog import METRICS, decisive_ratio
from autotune.reports import page, trials_csv
from autotune.reports.page import Review
from autotune.store.artifacts import learned_weights
from autotune.text_files import write_text
from search_spaces.errors import unknown

if TYPE_CHECKING:
    from autotune.exporters.verify import ExportCheck
    from autotune.maps.verify import Verification

#: Formats written from the records of a job alone -> default file or folder.
_FROM_RECORDS = {"map": "map.json", "report": "report.html", "csv": "csv"}
#: Values of ``--format``; the first is the native map.
FORMATS = (*_FROM_RECORDS, *exporter_names())
#: Front of a job without a feasible map.
_NO_FRONT = FrontRecord(trials=0, members=(), hypervolume=0.0)
#: Exit code if a promised figure does not hold; the code of ``MapError``.
_BROKEN = 5


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(export)
    app.command()(verify)
    app.command()(optuna_export)
    app.command()(mlflow_export)


def export(
    job: JobReference,
    database: Database,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of a map or report, or folder of another format.")
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option(
            "--pick",
            help="knee, fastest, smallest, most-accurate, or a trial number. The default is the fastest map within the "
            "job's limits, or the knee if it has none.",
            autocompletion=one_of(lambda: PICKS),
        ),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help=f"{', '.join(FORMATS)}. The default is map; for a map that another runtime than the job's reference "
            "runs, it is the format of that runtime.",
            autocompletion=one_of(lambda: FORMATS),
        ),
    ] = None,
    task_file: TaskFile = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Write one map of a job: as a file with its ranges and figures, in the format of a runtime, or as a report."""
    if format_name is not None and format_name not in FORMATS:
        raise JobSpecError(unknown("format", format_name, FORMATS))
    with closing(reader(database, url, token)) as client:
        record = client.find(job)
        trials = client.records.trials(record.id)
        front = [*client.records.fronts(record.id)[-1:], _NO_FRONT][0]
        if format_name == "csv":
            _export_csv(trials, front.members, output or Path("csv"), as_json)
            return
        choose = choose or default_pick(record.spec)
        trial = pick(trials, choose, record.spec.objectives, record.spec.constraints.constraints())
        latency = client.records.latency(record.id, trial.number) if format_name == "report" else ()
        learned = learned_weights(client.records, trial) if format_name != "report" else b""
    document = map_file.map_document(record, trial)
    if format_name is None:
        format_name = trial.backend if trial.backend in exporter_names() else "map"
    output = output or Path(_FROM_RECORDS.get(format_name, format_name))
    result = {"path": str(output), "trial": trial.number, "format": format_name, "map": document}
    match format_name:
        case "map":
            map_file.write(document, output, learned)
        case "report":
            review = Review(job=record, trials=tuple(trials), front=front, picked=trial, how=choose, latency=latency)
            write_text(output, page.build(review))
        case _:
            result["export"] = _export(document, learned, format_name, output, task_file)
    if as_json:
        print_json(result)
    else:
        name = decisive_ratio(record.spec.objectives).name
        ratio = trial.figures.get(name)
        speedup = f", {with_unit(name, ratio)} as full precision" if ratio else ""
        say(f"Wrote trial {trial.number} ({mix(trial.choices)}{speedup}) to {output}.")
        recovered = recovered_text(trial)
        if recovered:
            say(recovered)
        elif trial.kind is not TrialKind.FINAL:
            say("Figures come from the search; this map was not re-measured. Run `autotune verify`.")


def _export_csv(trials: Sequence[TrialRecord], front: Sequence[int], folder: Path, as_json: bool) -> None:
    """Write all trials of a job as CSV files."""
    files = trials_csv.write(trials, front, folder)
    if as_json:
        print_json({"files": [str(path) for path in files], "trials": len(trials)})
    else:
        say(f"Wrote {len(trials)} trials to {' and '.join(map(str, files))}.")


def _export(
    document: Mapping[str, Any], learned: bytes, format_name: str, folder: Path, task_file: Path | None
) -> dict[str, Any]:
    """Write a map in the format of a runtime and return its manifest."""
    # Imported here because it imports PyTorch, which read-only commands do not need.
    from autotune.exporters.export import export as write

    say(f"Building the model of {document['task']} to export it ...")
    with prints_on_stderr():
        manifest = write(document, format_name, folder, learned=learned, task_file=path_text(task_file))
    return manifest.model_dump(mode="json", by_alias=True)


def verify(
    path: Annotated[Path, typer.Argument(help="Map file, or folder of an export, to verify.")],
    task_file: TaskFile = None,
    repeats: Annotated[int, typer.Option(min=20, help="Timed passes.")] = 300,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest relative difference of the latency ratio.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Measure a map again, rebuilt from its file alone, or an export, loaded in its own runtime."""
    show = _verify_export if path.is_dir() else _verify_map
    if not show(path, repeats, tolerance, path_text(task_file), as_json):
        raise typer.Exit(_BROKEN)


def _verify_map(path: Path, repeats: int, tolerance: float, task_file: str | None, as_json: bool) -> bool:
    """Rebuild the quantized model from a map file alone, measure it, and return whether all promises hold."""
    file = map_file.read(path)
    # Imported here because it imports PyTorch, which read-only commands do not need.
    from autotune.maps.verify import verify as verify_map
    from autotune.search.stages import Stages

    say(f"Rebuilding {file.task} from {path} and measuring it again ...")
    with prints_on_stderr(), ConsoleListener() as listener:
        stages = Stages(listener)
        stages.stage("Measuring the map")
        report = verify_map(file, repeats=repeats, tolerance=tolerance, task_file=task_file, report=stages.report)
    if as_json:
        checks = [
            {
                "metric": check.metric,
                "promised": check.promised.value,
                "measured": check.measured.value,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "holds": check.holds,
                "inconclusive": check.inconclusive,
                "full_precision_ms": check.full_precision_ms,
            }
            for check in report.checks
        ]
        accuracy, full_precision = report.held_out or (None, None)
        held_out = {"accuracy": accuracy, "full_precision": full_precision, "missing": report.held_out_missing}
        verdict = {"holds": report.holds, "inconclusive": report.inconclusive}
        print_json({**verdict, "checks": checks, "held_out": held_out})
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("", "promised", "measured", "difference", "allowed", ""):
            table.add_column(heading, justify="right" if heading else "left")
        for check in report.checks:
            table.add_row(
                METRICS[check.metric].label,
                figure_text(check.metric, check.promised),
                figure_text(check.metric, check.measured),
                f"{100 * check.difference:+.2f} %",
                f"{100 * check.tolerance:.2g} %",
                check.verdict,
            )
        out.print(table)
        say(report.verdict)
        say(_held_out_text(report))
    return report.holds


def _held_out_text(report: "Verification") -> str:
    """Return a sentence about the accuracy on held-out data."""
    if report.held_out is None:
        return f"Held-out accuracy was not measured: {report.held_out_missing}."
    accuracy, reference = report.held_out
    drop = f" (drop {100 * (1.0 - accuracy / reference):+.2f} %)" if reference else ""
    return f"On held-out data: accuracy {accuracy:.4f}, full precision {reference:.4f}{drop}."


def _verify_export(path: Path, repeats: int, tolerance: float, task_file: str | None, as_json: bool) -> bool:
    """Load an export in its own runtime, write a report into its folder, and return whether all promises hold."""
    # Imported here because it imports PyTorch, which read-only commands do not need.
    from autotune.exporters.verify import REPORT, verify_export
    from autotune.search.stages import Stages

    say(f"Loading {path} in its own runtime, in a fresh process, and measuring it again ...")
    with prints_on_stderr(), ConsoleListener() as listener:
        stages = Stages(listener)
        stages.stage("Measuring the export")
        report = verify_export(path, repeats=repeats, tolerance=tolerance, task_file=task_file, report=stages.report)
    report.write(path)
    if as_json:
        print_json({"verification": report.document()})
    else:
        out.print(_export_table(report.checks))
        say(report.verdict)
        say(f"Outputs may differ by rounding: {report.rounding}.")
        if report.untimed is not None:
            say(f"Latency was not measured: {report.untimed}.")
        if not any(check.name == "held_out_accuracy" for check in report.checks):
            say("Held-out accuracy was not measured: the task has no held-out data.")
        say(f"Wrote {Path(path, REPORT)}.")
    return report.holds


def _export_table(checks: "Iterable[ExportCheck]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "expected", "measured", "limit", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for check in checks:
        text = METRICS[check.name].text if check.name == "latency_ratio" else "{:.4g}".format
        numbers = ("" if value is None else text(value) for value in (check.expected, check.measured, check.limit))
        name = "speedup" if check.name == "latency_ratio" else check.name.replace("_", " ")
        table.add_row(name, *numbers, check.verdict)
    return table


def optuna_export(
    job: JobReference,
    storage: Annotated[str, typer.Argument(metavar="STORAGE_URL", help="Optuna storage, such as sqlite:///optuna.db.")],
    database: Database,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Copy a job's trials into an Optuna storage, for optuna-dashboard and notebooks."""
    # Imported here because it imports Optuna, which other commands do not need.
    from autotune.reports.optuna_study import export_study

    record, trials, _ = _recorded(job, database, url, token)
    name = export_study(record, trials, storage)
    if as_json:
        print_json({"study": name, "trials": len(trials)})
    else:
        say(f"Copied {len(trials)} trials of job {record.id} into the study {name!r}.")


def _recorded(
    job: str, database: str, url: str | None, token: str | None
) -> tuple[JobRecord, list[TrialRecord], Sequence[int]]:
    """Return a job with its trials and the numbers of those on its front."""
    with closing(reader(database, url, token)) as client:
        record = client.find(job)
        return record, client.records.trials(record.id), client.records.tallies([record.id])[record.id].front


def mlflow_export(
    job: JobReference,
    tracking_uri: Annotated[
        str,
        typer.Argument(metavar="TRACKING_URI", help="MLflow store, such as sqlite:///mlflow.db or http://HOST:5000."),
    ],
    database: Database,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Copy a job's trials into an MLflow store, one run per trial."""
    from autotune.reports.mlflow_runs import export_runs

    record, trials, front = _recorded(job, database, url, token)
    name = export_runs(record, trials, front, tracking_uri)
    if as_json:
        print_json({"experiment": name, "trials": len(trials)})
    else:
        say(f"Copied {len(trials)} trials of job {record.id} into the experiment {name!r}.")
