"""The four figures that decide about a map, beside those of full precision. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.metrics.catalog import METRICS, decisive_workload, percentiles_of, ratio_of
from dashboard.formatting import change_text, drop_text, speedup_text, value_text
from workers.measurement import Workload
from workers.timing.estimates import Figure

Figures = Mapping[str, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One figure of a map."""

    label: str
    value: str
    #: How it compares with full precision; empty if unknown.
    note: str
    #: What the figure means.
    help: str


def cards(figures: Figures, full: Figures, objectives: Sequence[str]) -> list[Card]:
    """Return speed, accuracy, memory and divergence of a map, as far as they were measured.

    Args:
        figures: those of the map.
        full: those of full precision; empty before they are measured.
        objectives: objectives of the job, whose workload the speed is about.
    """
    found = [_speed(figures, full, objectives)]
    accuracy, drop = figures.get("accuracy"), figures.get("accuracy_drop")
    if accuracy:
        note = drop_text(drop.value) if drop else ""
        found.append(_card("accuracy", accuracy, note))
    memory, before = (known.get("weight_memory_mib") for known in (figures, full))
    if memory:
        found.append(_card("weight_memory_mib", memory, change_text(memory.value, before.value) if before else ""))
    if "divergence" in figures:
        found.append(_card("divergence", figures["divergence"], "0: equal outputs"))
    return [card for card in found if card is not None]


def _card(metric: str, figure: Figure, note: str) -> Card:
    label = METRICS[metric].label
    return Card(
        label=label.removesuffix(" from full precision"), value=value_text(metric, figure.value), note=note, help=label
    )


def _speed(figures: Figures, full: Figures, objectives: Sequence[str]) -> Card | None:
    workload = decisive_workload(objectives)
    ratio, median = ratio_of(workload), percentiles_of(workload)[50]
    if ratio.name not in figures:
        return None
    times = [value_text(median.name, known[median.name].value) for known in (figures, full) if median.name in known]
    return Card(
        label="Speed" if workload is Workload.FORWARD else f"Speed, {median.label.lower()}",
        value=speedup_text(figures[ratio.name].value),
        note=", was ".join(times),
        help="Passes of this map in the time of one pass of full precision, measured alternately",
    )
