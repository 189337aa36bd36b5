"""Output of the command line: tables for people, JSON for programs."""

import dataclasses
import io
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autotune.jobs.lifecycle import is_interrupted
from autotune.jobs.records import JobRecord, TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import METRICS, Kind, decisive_ratio
from workers.timing.estimates import Figure

#: Version of the output of ``--json``.
JSON_SCHEMA = "autotune.cli/v1"

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

#: Choice -> abbreviation in the map column: W and A bits, s(tatic) or d(ynamic).
_SHORT = {
    "int8_static": "s8",
    "int8_static_smooth": "ss8",
    "int8_dynamic": "d8",
    "int8_dynamic_per_token": "dt8",
    "int8_weight_only": "w8",
    "int4_weight_only": "w4",
    "int4_weight_only_gptq": "g4",
    "fp8_static": "sf8",
    "fp8_dynamic": "df8",
    "fp8_weight_only": "wf8",
}
#: Most metric columns that fit 80 characters with the map, and the metrics left out first if there are more.
_MOST_COLUMNS = 6
_DROPPED_FIRST = (
    "latency_p95_ms",
    "latency_p50_ms",
    "request_latency_p50_ms",
    "prefill_latency_p50_ms",
    "shifted_accuracy",
)
_LEGEND = "s8/d8 int8 static/dynamic · w8/w4 int8/int4 weight-only"
_FP8_LEGEND = "sf8/df8/wf8 fp8 static/dynamic/weight-only"
#: Rare choices -> meaning of their abbreviations.
_RARE_LEGENDS = {
    "int8_dynamic_per_token": "dt8 d8 per token",
    "int8_static_smooth": "ss8 int8 static, smoothed",
    "int4_weight_only_gptq": "g4 w4 by GPTQ",
}


def print_json(data: Mapping[str, Any]) -> None:
    """Print data as JSON, with the version of its layout."""
    print(json.dumps({"schema": JSON_SCHEMA, **data}, indent=2, allow_nan=False))


def say(message: str) -> None:
    """Print a message on standard error; the terminal wraps it, and square brackets are not markup."""
    err.print(Text(message), soft_wrap=True)


def as_text(parts: Iterable[RenderableType], *, width: int | None = None) -> str:
    """Return parts of an output as plain text, as wide as the terminal unless ``width`` says otherwise."""
    console = Console(file=io.StringIO(), width=width, highlight=False, force_jupyter=False, color_system=None)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip()


def short_choice(name: str) -> str:
    """Return the abbreviation of a choice; ``legend`` explains it."""
    return _SHORT.get(name, name)


def legend(choices: Iterable[str]) -> str:
    """Return the meaning of abbreviations; those of fp8 and rare choices only if ``choices`` contains them."""
    names = set(choices)
    parts = [_LEGEND]
    parts += [_FP8_LEGEND] if any(name.startswith("fp8_") for name in names) else []
    parts += [text for name, text in _RARE_LEGENDS.items() if name in names]
    return " · ".join(parts)


def mix(choices: Mapping[str, str]) -> str:
    """Return the composition of a map, such as ``30 s8 + 6 bf16``, most frequent choice first."""
    counts = Counter(choices.values())
    return " + ".join(f"{count} {short_choice(name)}" for name, count in counts.most_common())


def figure_text(name: str, figure: Figure | None) -> str:
    """Format a figure for people, without its unit; empty if it was not measured."""
    return "" if figure is None else METRICS[name].text(figure.value)


def with_unit(name: str, figure: Figure | None) -> str:
    """Format a figure for people, with its unit if the text is a number; empty if it was not measured."""
    return "" if figure is None else METRICS[name].text_with_unit(figure.value)


def front_table(
    title: str, trials: Sequence[TrialRecord], objectives: Sequence[str] = (), tied: Collection[int] = ()
) -> Group:
    """Return the titled table of ``front_rows``, which fits 80 characters."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    headings, rows = front_rows(trials, objectives, tied)
    for column, heading in enumerate(headings):
        is_map = column == 1
        table.add_column(
            heading,
            justify="left" if is_map else "right",
            overflow="fold" if is_map else "ellipsis",
            no_wrap=column > 1,
        )
    for trial, row in zip(trials, rows, strict=True):
        table.add_row(*map(escape, row), style="" if trial.feasible else "dim")
    # A title of the table's own would be wrapped at the width of a narrow table.
    return Group(Text(title, style="italic"), table if trials else Text("No map yet.\n", style="dim"))


def front_rows(
    trials: Sequence[TrialRecord], objectives: Sequence[str] = (), tied: Collection[int] = ()
) -> tuple[list[str], list[list[str]]]:
    """Return headings and one row per trial, few enough columns for 80 characters; metrics of ``objectives`` stay.

    An asterisk marks final measurements, an equals sign the trials whose numbers ``tied`` holds.
    """
    ratio = decisive_ratio(objectives)
    known = [n for n, metric in METRICS.items() if metric.heading and metric.kind is not Kind.LATENCY_RATIO]
    known.append(ratio.name)
    names = [name for name in sorted(known, key=column_order) if any(name in trial.figures for trial in trials)]
    dropped = sorted((name for name in _DROPPED_FIRST if name in names), key=lambda name: name in objectives)
    dropped = dropped[: max(0, len(names) - _MOST_COLUMNS)]
    names = [name for name in names if name not in dropped]
    rows = []
    for trial in trials:
        final, tie = trial.kind is TrialKind.FINAL, trial.number in tied
        number = f"{trial.number}{'*' if final else ''}{'=' if tie else ''}"
        # Spaces let long metric names wrap between words.
        named = trial_name(trial).replace("_", " ")
        rows.append([number, named, *(_cell(name, trial.figures.get(name)) for name in names)])
    return ["trial", "map", *(METRICS[name].heading for name in names)], rows


def column_order(name: str) -> int:
    """Return the sort key of a column: time, then quality, then memory."""
    metric = METRICS[name]
    return 0 if metric.is_latency else 1 if metric.is_quality else 2


def _cell(name: str, figure: Figure | None) -> str:
    uncertain = figure is not None and METRICS[name].kind is Kind.LATENCY_RATIO and figure.is_uncertain
    return f"{'~' if uncertain else ''}{figure_text(name, figure)}"


def trial_name(trial: TrialRecord) -> str:
    """Return a baseline's label or a sampled map's composition, with a remark if it failed or is infeasible."""
    name = (_baseline_name(trial.label) if trial.label else mix(trial.choices)) + trial.addition
    if trial.state is TrialState.FAILED:
        return f"{name} (failed)"
    return name if trial.feasible else f"{name} (misses {', '.join(missed(trial)) or 'a constraint'})"


def _baseline_name(label: str) -> str:
    """Return a baseline's label with the choice abbreviated, so that tables stay narrow."""
    kind, _, choice = label.rpartition(" ")
    return f"{kind} {short_choice(choice)}".strip()


def missed(trial: TrialRecord) -> list[str]:
    """Return the metrics whose constraint the trial breaks."""
    return [name for name, violation in trial.violations.items() if violation > 0]


def state_text(job: JobRecord) -> str:
    """Return the state of a job in a word: a running job whose driver was lost is interrupted."""
    return "interrupted" if is_interrupted(job, now()) else job.state.value


def job_json(job: JobRecord, trials: int, front: Iterable[int] = ()) -> dict[str, Any]:
    """Return a job as JSON-ready data."""
    return {
        "id": job.id,
        "name": job.name,
        "task": job.task,
        "state": job.state.value,
        "interrupted": is_interrupted(job, now()),
        "order": job.order and job.order.value,
        "stage": job.stage and dataclasses.asdict(job.stage),
        "owner": job.owner,
        "priority": job.priority,
        "created_at": job.created_at.isoformat(),
        "updated_at": job.updated_at.isoformat(),
        "elapsed_s": round(job.elapsed_s, 3),
        "trials": trials,
        "budget": job.spec.search.trials,
        "front": list(front),
        "error": job.error,
    }


def trial_json(trial: TrialRecord, *, on_front: bool, with_choices: bool = False) -> dict[str, Any]:
    """Return a trial as JSON-ready data."""
    return {
        "number": trial.number,
        "kind": trial.kind.value,
        "label": trial.label,
        "backend": trial.ran_on,
        "parent": trial.parent,
        "recovery": trial.recovery and dataclasses.asdict(trial.recovery),
        "state": trial.state.value,
        "feasible": trial.feasible,
        "on_front": on_front,
        "figures": {
            name: {"value": figure.value, "low": figure.low, "high": figure.high}
            for name, figure in trial.figures.items()
        },
        "violations": dict(trial.violations),
        "message": trial.message,
    } | ({"choices": dict(trial.choices)} if with_choices else {})


def is_interactive() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr.isatty()
