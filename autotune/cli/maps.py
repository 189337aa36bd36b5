"""Commands about maps: export and verify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from autotune import map_file
from autotune.cli.options import AsJson, Database, JobReference, TaskFile, path_text
from autotune.cli.output import figure_text, mix, out, print_json, say
from autotune.errors import ExportError
from autotune.exporters import exporter_names
from autotune.front import pick
from autotune.jobs import find_job
from autotune.metrics import METRICS
from autotune.store.open import open_store
from search_spaces.errors import unknown

#: What ``--format`` takes; the first is the native map.
FORMATS = ("map", *exporter_names())
#: Exit code of a verification that found a broken promise; the code of ``MapError``.
_BROKEN = 5


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(export)
    app.command()(verify)


def export(
    job: JobReference,
    database: Database,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write for a map, else the folder.")
    ] = None,
    choose: Annotated[
        str, typer.Option("--pick", help="knee, fastest, smallest, most-accurate, or a trial number.")
    ] = "knee",
    format_name: Annotated[str, typer.Option("--format", "-f", help=f"{', '.join(FORMATS)}.")] = "map",
    task_file: TaskFile = None,
    as_json: AsJson = False,
) -> None:
    """Write one map of a job to a file, with its ranges and promised figures, or in a runtime's format."""
    if format_name not in FORMATS:
        raise ExportError(unknown("format", format_name, FORMATS))
    store = open_store(database, read_only=True)
    try:
        record = find_job(store, job)
        trial = pick(store.trials(record.id), choose, tuple(record.spec["objectives"]))
    finally:
        store.close()
    document = map_file.map_document(record, trial)
    output = output or Path("map.json" if format_name == "map" else format_name)
    result = {"path": str(output), "trial": trial.number, "format": format_name, "map": document}
    if format_name == "map":
        map_file.write(document, output)
    else:
        result["export"] = _export(document, format_name, output, task_file)
    if as_json:
        print_json(result)
    else:
        ratio = trial.figures["latency_ratio"].value if "latency_ratio" in trial.figures else None
        speedup = f", {1 / ratio:.2f}x as fast as full precision" if ratio else ""
        say(f"Wrote trial {trial.number} ({mix(trial.choices)}{speedup}) to {output}.")


def _export(document: Mapping[str, Any], format_name: str, folder: Path, task_file: Path | None) -> dict[str, Any]:
    """Write a map in a runtime's format and return what was written."""
    # Imported here: it brings torch, which commands that only read do not need.
    from autotune.exporters.export import export as write

    say(f"Building the model of {document['task']} to export it ...")
    manifest = write(document, format_name, folder, task_file=path_text(task_file))
    return manifest.model_dump(mode="json", by_alias=True)


def verify(
    path: Annotated[Path, typer.Argument(help="Map file to verify.")],
    task_file: TaskFile = None,
    repeats: Annotated[int, typer.Option(min=20, help="Timed passes.")] = 300,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Relative difference of latency allowed.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Rebuild the quantized model from a map file alone and measure it again."""
    # Imported here: it brings torch, which commands that only read do not need.
    from autotune.verify import verify as verify_map

    file = map_file.read(path)
    say(f"Rebuilding {file.task} from {path} and measuring it again ...")
    report = verify_map(file, repeats=repeats, tolerance=tolerance, task_file=path_text(task_file))
    if as_json:
        checks = [
            {
                "metric": check.metric,
                "promised": check.promised.value,
                "measured": check.measured.value,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "holds": check.holds,
            }
            for check in report.checks
        ]
        held_out = {"accuracy": report.held_out_accuracy, "full_precision": report.held_out_reference}
        print_json({"holds": report.holds, "checks": checks, "held_out": held_out})
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
                "holds" if check.holds else "BROKEN",
            )
        out.print(table)
        drop = 1.0 - report.held_out_accuracy / report.held_out_reference
        say(
            f"On held-out data: accuracy {report.held_out_accuracy:.4f}, "
            f"full precision {report.held_out_reference:.4f} (drop {100 * drop:+.2f} %)."
        )
    if not report.holds:
        raise typer.Exit(_BROKEN)
