"""The command ``sensitivity``: predicted loss and saving of each layer and choice, before any map is measured."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autotune.cli.options import AsJson, Database, JobReference, Token, Url, reader
from autotune.console.output import job_json, legend, out, print_json, say, short_choice
from autotune.errors import ConflictError
from autotune.jobs.records import JobRecord, JobState
from autotune.jobs.spec import SamplerName
from autotune.search.probing import probes_of
from autotune.store.base import ReadStore
from search_spaces.choice import FULL_PRECISION
from workers.setup import Estimator, LayerProbe, Probes

_METHODS = {
    Estimator.GRADIENT: "a gradient sketch",
    Estimator.LOCAL: "the layers' local errors, scaled to the uniform maps,",
}
#: Smallest width of the layer column; if it does not fit, the terminal cuts lines.
_NARROWEST = 12
#: Replaces the omitted part of a name.
_GAP = "…"


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(sensitivity)


def sensitivity(
    job: JobReference, database: Database, url: Url = None, token: Token = None, as_json: AsJson = False
) -> None:
    """Print the predicted loss and saving of each layer and choice, most sensitive layer first."""
    with closing(reader(database, url, token)) as client:
        record = client.find(job)
        probes = probes_of(client.records, record)
        if probes is None:
            raise ConflictError(_why_not(client.records, record))
        tally = client.records.tallies([record.id])[record.id]
        about = job_json(record, tally.searched, tally.front)
    choices = [name for name in record.spec.search.choices if name != FULL_PRECISION.name]
    layers = _ranked(probes, choices)
    if as_json:
        print_json({"job": about, **_probes_json(probes, layers)})
        return
    out.print(_table(f"Layers of {record.name}, most sensitive first", layers, choices))
    out.print(Text(f"{_EXPLAINED} {legend(choices)}.", style="dim"))
    say(f"Estimated by {_METHODS[probes.estimator]} from {probes.samples} samples in {probes.seconds:.1f} s.")


_EXPLAINED = (
    "First line: predicted divergence if only this layer takes the choice. "
    "Second line: change of one pass in ms from fp32; negative is faster."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer with its probes."""

    name: str
    full_precision: LayerProbe
    #: Choice name -> probe, for the quantized choices that the layer can take.
    quantized: Mapping[str, LayerProbe]

    @property
    def worst(self) -> float:
        """Largest divergence of any choice."""
        return max((probe.divergence for probe in self.quantized.values()), default=0.0)

    def change_ms(self, choice: str) -> float:
        """Return the time that a choice adds to a pass; negative if it saves time."""
        return self.quantized[choice].latency_ms - self.full_precision.latency_ms


def _ranked(probes: Probes, choices: Sequence[str]) -> list[_Layer]:
    """Return the layers by descending divergence of their worst choice."""
    by_layer: dict[str, dict[str, LayerProbe]] = {}
    for probe in probes.layers:
        by_layer.setdefault(probe.layer, {})[probe.choice] = probe
    layers = [
        _Layer(
            name=name,
            full_precision=found[FULL_PRECISION.name],
            quantized={choice: found[choice] for choice in choices if choice in found},
        )
        for name, found in by_layer.items()
    ]
    return sorted(layers, key=lambda layer: layer.worst, reverse=True)


def _probes_json(probes: Probes, layers: Sequence[_Layer]) -> dict[str, Any]:
    """Return probes as JSON-ready data."""
    return {
        "estimator": probes.estimator.value,
        "samples": probes.samples,
        "seconds": round(probes.seconds, 3),
        "pass_ms": probes.pass_ms,
        "layers": [
            {
                "layer": layer.name,
                "latency_ms": layer.full_precision.latency_ms,
                "choices": {
                    choice: {
                        "divergence": probe.divergence,
                        "latency_ms": probe.latency_ms,
                        "change_ms": layer.change_ms(choice),
                    }
                    for choice, probe in layer.quantized.items()
                },
            }
            for layer in layers
        ],
    }


def _table(title: str, layers: Sequence[_Layer], choices: Sequence[str]) -> Table:
    """Return a table with two lines per layer; layer names get the width that the figures leave."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=0)
    cells = {choice: [_cell(layer, choice) for layer in layers] for choice in choices}
    widths = {
        choice: max(len(short_choice(choice)), *(len(line) for cell in column for line in cell.plain.splitlines()), 0)
        for choice, column in cells.items()
    }
    room = max(_NARROWEST, out.width - sum(width + 1 for width in widths.values()) - 2)
    table.add_column("layer", no_wrap=True)
    for choice, width in widths.items():
        table.add_column(short_choice(choice), justify="right", no_wrap=True, min_width=width)
    for row, layer in enumerate(layers):
        own = Text.assemble(shortened(layer.name, room), (f"\n  fp32 {layer.full_precision.latency_ms:.3f} ms", "dim"))
        table.add_row(own, *(column[row] for column in cells.values()))
    return table


def _cell(layer: _Layer, choice: str) -> Text:
    """Return the divergence and, below it, the change of time; empty if the layer cannot take the choice."""
    if choice not in layer.quantized:
        return Text()
    change_ms = layer.change_ms(choice)
    change = f"{change_ms:+.3f}" if abs(change_ms) < 99.9 else f"{change_ms:+.0f}"  # seven characters at most
    return Text.assemble(f"{layer.quantized[choice].divergence:.1e}", (f"\n{change}", "dim"))


def shortened(name: str, width: int) -> str:
    """Return a layer's name in at most ``width`` characters, with ``…`` for omitted parts in the middle.

    Whole parts are omitted, but not numbers, which distinguish blocks. The first part and the one before the
    last are omitted only if necessary; if the name is still too long, its middle characters are cut.
    """
    parts = name.split(".")
    dispensable = [*range(1, len(parts) - 2), 0, len(parts) - 2] if len(parts) > 1 else []
    for position in dispensable:
        if len(_joined(parts)) > width and not parts[position].isdigit():
            parts[position] = _GAP
    text = _joined(parts)
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + _GAP + text[len(text) - tail :]


def _joined(parts: Sequence[str]) -> str:
    """Join the parts of a name, merging neighbouring gaps."""
    return ".".join(part for i, part in enumerate(parts) if part != _GAP or i == 0 or parts[i - 1] != _GAP)


def _why_not(store: ReadStore, job: JobRecord) -> str:
    """Return why a job has no probes, and how to get them."""
    sampler = job.spec.search.sampler
    if sampler is not SamplerName.SENSITIVITY:
        return (
            f"job {job.id} has no sensitivities: its sampler is {sampler}, which probes no layers; "
            "run a job with search.sampler: sensitivity"
        )
    failures = [event.message for event in store.events(job.id) if event.kind == "probes_failed"]
    if failures:
        return f"job {job.id} has no sensitivities: {failures[-1]}; fix that and run: autotune resume {job.id}"
    if job.state is JobState.FINISHED:
        return (
            f"job {job.id} has no sensitivities: full precision and the uniform maps used up its budget before its "
            "layers were probed; run it with more search.trials or a longer search.time_limit_s"
        )
    return (
        f"job {job.id} has no sensitivities yet: it has not probed its layers; wait if it is running, "
        f"otherwise run: autotune resume {job.id}"
    )
