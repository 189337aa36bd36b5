"""Trials as CSV, one row per trial, for spreadsheets and notebooks."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.jobs.records import TrialRecord
from autotune.metrics.catalog import METRICS
from autotune.text_files import write_text

#: Prefixes of text that a spreadsheet would interpret as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(trials: Sequence[TrialRecord], front: Collection[int], folder: Path) -> list[Path]:
    """Write ``trials.csv``, and ``front.csv`` with the trials in ``front``, into ``folder``; return both paths.

    Raises:
        MapError: if a file cannot be written.
    """
    found = rows(trials, front)
    tables = {"front.csv": [row for row in found if row["on_front"]], "trials.csv": found}
    headings = columns(trials)
    for name, shown in tables.items():
        write_text(folder / name, _text(headings, shown))
    return [folder / name for name in tables]


def rows(trials: Sequence[TrialRecord], front: Collection[int]) -> list[dict[str, Any]]:
    """Return a row per trial, column -> value; a value that was not measured is missing."""
    return [_row(trial, trial.number in front) for trial in trials]


def columns(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the headings, the same for both files, without columns that no trial fills."""
    figures = [name for name in METRICS if any(name in trial.figures for trial in trials)]
    sampled = {name for trial in trials for name, figure in trial.figures.items() if figure.low is not None}
    bounds = {name: [name, f"{name}_low", f"{name}_high"] if name in sampled else [name] for name in figures}
    violated = dict.fromkeys(name for trial in trials for name in trial.violations)
    layers = dict.fromkeys(name for trial in trials for name in trial.choices)
    parents = ["parent"] if any(trial.parent is not None for trial in trials) else []
    return [
        *("number", "kind", "label", "backend", "state", "feasible", "on_front"),
        *parents,
        *(column for name in figures for column in bounds[name]),
        *(f"violation:{name}" for name in violated),
        *("message", "worker", "seconds", "finished_at"),
        *(f"layer:{name}" for name in layers),
    ]


def _row(trial: TrialRecord, on_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "kind": trial.kind.value,
        "label": trial.label,
        "backend": trial.ran_on,
        "state": trial.state.value,
        "feasible": trial.feasible,
        "on_front": on_front,
        "parent": trial.parent,
        "message": trial.message,
        "worker": trial.worker,
        "seconds": trial.seconds,
        "finished_at": trial.finished_at.isoformat(),
    }
    for name, figure in trial.figures.items():
        row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    row |= {f"violation:{name}": violation for name, violation in trial.violations.items()}
    return row | {f"layer:{name}": choice for name, choice in trial.choices.items()}


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_harmless(row.get(column)) for column in columns])
    return stream.getvalue()


def _harmless(value: Any) -> Any:
    """Return a cell that no spreadsheet evaluates: text that looks like a formula gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
