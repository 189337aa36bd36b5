"""Converts trials to data frames: one row per candidate or metric. Pure functions."""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.metrics.catalog import (
    METRICS,
    OVERLOADED_MS,
    Constraint,
    Kind,
    decisive_ratio,
    decisive_workload,
    percentiles_of,
)
from autotune.metrics.objectives import minimised
from autotune.metrics.pareto import non_dominated
from autotune.metrics.ties import qualities, tied
from dashboard.formatting import (
    ABSENT,
    cause_text,
    change_text,
    figure_text,
    interval_text,
    label_in_sentence,
    one_line,
    points_text,
    times_text,
    value_text,
)
from search_spaces.choice import FULL_PRECISION, ActivationMode, choice_named
from workers.timing.estimates import Figure

#: Most points drawn, because more make the page slow; the front and the baselines come first.
MOST_POINTS = 500
#: Cells along each axis, by rank, so that scales do not matter; the newest point of each cell has priority.
_CELLS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A constraint, drawn as a line across an axis."""

    #: Position of the line, in the unit of the axis.
    value: float
    #: Whether larger values break the limit.
    at_most: bool
    #: Text of the limit.
    label: str


def candidate_name(trial: TrialRecord) -> str:
    """Return the name of a candidate for people: its label as a baseline, or its number, and what sets it apart."""
    return one_line((trial.label or f"trial {trial.number}") + trial.addition)


def full_precision(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the measured trial of full precision; None if there is none."""
    for trial in trials:
        if trial.kind is TrialKind.BASELINE and set(trial.choices.values()) == {FULL_PRECISION.name}:
            return trial if trial.figures else None
    return None


def misses_text(trial: TrialRecord, constraints: Sequence[Constraint]) -> str:
    """Return the limits that a candidate breaks, with its values; empty if it breaks none."""
    known = {limit: trial.figures[limit.metric].value for limit in constraints if limit.metric in trial.figures}
    return "; ".join(miss_text(limit, value) for limit, value in known.items() if limit.violation(value) > 0)


def miss_text(constraint: Constraint, value: float) -> str:
    """Return the text of a value and the limit that it breaks."""
    found, limit = value_text(constraint.metric, value), value_text(constraint.metric, constraint.limit)
    return f"{label_in_sentence(constraint.metric)} {found}, limit {limit}"


def trial_frame(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return one row per trial with every metric and its interval (``_low``, ``_high``; NaN if unknown).

    ``static`` is the static share of the layers with quantized activations; NaN if there are none.
    """
    metrics = [f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high")]
    rows = [_trial_row(trial) for trial in trials]
    # An empty frame would have object columns, which pandas treats as labels instead of a mask.
    types = {"baseline": bool, "elsewhere": bool, **dict.fromkeys(("static", *metrics), float)}
    frame = pd.DataFrame(
        rows, columns=["number", "name", "baseline", "backend", "elsewhere", "static", *metrics]
    ).astype(types)
    return frame.copy()  # defragmented: pandas warns if columns are added to a frame of a hundred blocks


def _trial_row(trial: TrialRecord) -> dict[str, object]:
    row: dict[str, object] = {
        "number": trial.number,
        "name": candidate_name(trial),
        "baseline": _is_baseline(trial),
        "backend": trial.ran_on,
        "elsewhere": bool(trial.backend),  # not on the backend of the reference
        "static": static_share(trial.choices),
    }
    # The latency of a rejected candidate was not measured in full.
    figures = trial.figures if trial.state is TrialState.COMPLETE else {}
    for metric, figure in figures.items():
        row |= {metric: figure.value, f"{metric}_low": figure.low, f"{metric}_high": figure.high}
    return row


def _is_baseline(trial: TrialRecord) -> bool:
    # Final measurements and recovered maps keep the label.
    return trial.label is not None and trial.kind is not TrialKind.RECOVERED


def static_share(choices: Mapping[str, str]) -> float:
    """Return the static share of the layers with quantized activations; NaN if there are none."""
    modes: Counter[ActivationMode] = Counter()
    for name, count in Counter(choices.values()).items():
        modes[choice_named(name).activation] += count
    static, dynamic = modes[ActivationMode.STATIC], modes[ActivationMode.DYNAMIC]
    return static / (static + dynamic) if static + dynamic else math.nan


def metrics_frame(first: TrialRecord, second: TrialRecord) -> pd.DataFrame:
    """Return one row per metric that both trials have, as text: figures with intervals, and the change."""
    shared = [metric for metric in METRICS if metric in first.figures and metric in second.figures]
    rows = [_metric_row(metric, first.figures[metric], second.figures[metric]) for metric in shared]
    return pd.DataFrame(rows, columns=["metric", "first", "second", "change", "certain"])


def _metric_row(metric: str, first: Figure, second: Figure) -> dict[str, str]:
    sampled = first.low is not None or second.low is not None
    overlap = _low(first) <= _high(second) and _low(second) <= _high(first)
    return {
        "metric": METRICS[metric].label,
        "first": _with_interval(metric, first),
        "second": _with_interval(metric, second),
        "change": _change_text(metric, first.value, second.value),
        "certain": ABSENT if not sampled else "no" if overlap else "yes",
    }


def _change_text(metric: str, first: float, second: float) -> str:
    if METRICS[metric].kind is Kind.ACCURACY_DROP:
        return points_text(second - first)
    if METRICS[metric].kind is Kind.LATENCY_RATIO:
        return change_text(first, second)  # of the speedups, as which the ratios are shown
    return times_text(second, first) if METRICS[metric].logarithmic else change_text(second, first)


def _with_interval(metric: str, figure: Figure) -> str:
    interval = interval_text(metric, figure)
    return figure_text(metric, figure) + (f" ({interval})" if interval else "")


def _low(figure: Figure) -> float:
    return figure.value if figure.low is None else figure.low


def _high(figure: Figure) -> float:
    return figure.value if figure.high is None else figure.high


def full_precision_row(frame: pd.DataFrame) -> pd.Series | None:
    """Return the row of full precision in ``trial_frame``; None before it is measured."""
    found = frame[frame["baseline"] & (frame["name"] == FULL_PRECISION.name) & frame["accuracy"].notna()]
    return found.iloc[0] if len(found) else None


def judged(frame: pd.DataFrame, constraints: Sequence[Constraint], objectives: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ``trial_frame`` with the columns ``feasible`` and ``on_front`` under the given limits."""
    feasible = frame[percentiles_of(decisive_workload(objectives))[50].name].notna()
    for constraint in constraints:
        # An unmeasured metric breaks no limit: NaN is not above 0.
        feasible &= ~(constraint.violation(frame[constraint.metric].to_numpy()) > 0)
    candidates = frame[feasible]
    points = np.column_stack([minimised(METRICS[metric], candidates[metric].to_numpy()) for metric in objectives])
    on_front = feasible.copy()
    on_front[feasible] = non_dominated(points)
    return frame.assign(feasible=feasible, on_front=on_front)


def staircase(points: pd.DataFrame, *, maximise: bool) -> pd.DataFrame:
    """Return the points that no other beats in both ``x`` and ``y``, by ascending ``x``; ``y`` may be maximised."""
    ordered = points.sort_values(["x", "y"], ascending=[True, not maximise])
    best = ordered["y"].cummax() if maximise else ordered["y"].cummin()
    return ordered[best.ne(best.shift())]


def with_misses(points: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.DataFrame:
    """Return the points with the limits that each breaks as text in the column ``misses``."""
    misses = pd.Series("", index=points.index)
    for constraint in constraints:
        values = points[constraint.metric]
        for at in points.index[constraint.violation(values.to_numpy()) > 0]:
            misses[at] += ("; " if misses[at] else "") + miss_text(constraint, values[at])
    return points.assign(misses=misses)


def with_ties(points: pd.DataFrame, objectives: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ``judged`` with the column ``tie``, true for maps on the front that are not measurably faster.

    A map of better quality on the front has an interval of the latency ratio that overlaps with theirs.
    """
    ratio = decisive_ratio(objectives).name
    front = points[points["on_front"] & points[ratio].notna()]
    low, high = (front[f"{ratio}_{side}"].fillna(front[ratio]).to_numpy() for side in ("low", "high"))
    quality = np.column_stack([minimised(METRICS[name], front[name].to_numpy()) for name in qualities(objectives)])
    ties = front.index[tied(low, high, quality)]
    return points.assign(tie=points.index.isin(ties))


def drawn(frame: pd.DataFrame, x: str, y: str, most: int = MOST_POINTS) -> pd.DataFrame:
    """Return the rows of ``judged`` that have both metrics and are not overloaded, at most ``most``.

    Points on the front and baselines come first, then one point per cell, then the newest.
    """
    known = frame.dropna(subset=[x, y])
    known = known[known[x] < OVERLOADED_MS]
    if len(known) <= most:
        return known
    cells = pd.DataFrame({axis: pd.cut(known[axis].rank(method="dense"), _CELLS, labels=False) for axis in (x, y)})
    wanted = known.assign(first=known["on_front"] | known["baseline"], alone=~cells.duplicated(keep="last"))
    kept = wanted.sort_values(["first", "alone", "number"], ascending=False).head(most)
    return known.loc[kept.index].sort_values("number")


def ranked(points: pd.DataFrame, x: str, picked: Mapping[int, Sequence[str]]) -> pd.DataFrame:
    """Return the rows of ``with_ties`` and ``with_misses``, the front first, each part by ascending ``x``.

    The column ``standing`` says in words whether a map is on the front, picked, tied or dominated.

    Args:
        points: the rows.
        x: latency on the x axis.
        picked: trial number -> the reasons why the map was picked, a word each.
    """
    rows = points.sort_values(["on_front", x], ascending=[False, True], kind="stable")
    return rows.assign(standing=[_standing(row, picked.get(row["number"], ())) for row in rows.to_dict("records")])


def _standing(row: Mapping[Hashable, Any], picked: Sequence[str]) -> str:
    word = "on the front" if row["on_front"] else "dominated" if row["feasible"] else "breaks a limit"
    return ", ".join([word, *picked, *(["tie"] if row["tie"] else [])])


def left_out(trials: Sequence[TrialRecord], shown: Collection[int]) -> pd.DataFrame:
    """Return one row per candidate that is not drawn, with the reason."""
    rows = [
        {"number": trial.number, "name": candidate_name(trial), "why": _why_left_out(trial)}
        for trial in trials
        if trial.number not in shown
    ]
    return pd.DataFrame(rows, columns=["number", "name", "why"])


def _why_left_out(trial: TrialRecord) -> str:
    detail = f": {one_line(trial.message)}" if trial.message else ""
    if trial.state is TrialState.FAILED:
        return f"Failed, {cause_text(trial.failure) if trial.failure else 'for an unknown reason'}{detail}"
    if trial.state is TrialState.REJECTED:
        return f"Ruled out before it was measured in full{detail}"
    return "One of the two figures was not measured or is overloaded, or too many other points are nearby"


def limits_on(metric: str, constraints: Sequence[Constraint]) -> tuple[Limit, ...]:
    """Return the limits to draw across the axis of ``metric``."""
    return tuple(
        Limit(value=limit.limit, at_most=limit.at_most, label=f"limit {value_text(metric, limit.limit)}")
        for limit in constraints
        if limit.metric == metric
    )
