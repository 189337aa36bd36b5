"""Which map to take from a front, with the reason in words. Pure functions of data frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autotune.metrics.catalog import METRICS
from autotune.metrics.objectives import minimised
from autotune.metrics.pareto import knee, ways
from dashboard.formatting import label_in_sentence, value_text
from dashboard.tables.trials import full_precision_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One map, and why it."""

    #: What it is the best at, such as ``Fastest``.
    title: str
    #: Its trial.
    number: int
    name: str
    #: Its figures that count here, in words.
    figures: str
    #: Why it and no other, in a sentence.
    reason: str


def picks(frame: pd.DataFrame, x: str, y: str, objectives: Sequence[str]) -> list[Pick]:
    """Return the fastest, the smallest and the most balanced map within the limits; empty if none is.

    Args:
        frame: rows of ``dashboard.tables.trials.judged``.
        x: latency that decides who is the fastest.
        y: quality that decides between equals.
        objectives: of the job; the knee balances them.
    """
    able = frame[frame["feasible"]].dropna(subset=[x, y])
    if able.empty:
        return []
    reference = full_precision_row(frame)
    return [
        _extreme("Fastest", able, x, y, (x, y), reference),
        _extreme("Smallest", able, "weight_memory_mib", x, (x, y), reference),
        _knee(able, objectives, (x, y)),
    ]


def _extreme(
    title: str, able: pd.DataFrame, metric: str, then: str, shown: tuple[str, str], reference: pd.Series | None
) -> Pick:
    keys = [minimised(METRICS[name], able[name].to_numpy()) for name in (then, metric)]
    ranked = able.iloc[np.lexsort(keys)]
    best = ranked.iloc[0]
    reason = "As much as full precision."
    if reference is not None and best[metric] != reference[metric]:
        share = 100 * abs(best[metric] / reference[metric] - 1)
        reason = f"{share:.1f} % {'less' if best[metric] < reference[metric] else 'more'} than full precision."
    if len(ranked) > 1:
        reason += " " + _runner_up(best, ranked.iloc[1], metric)
    return _pick(title, best, shown, reason)


def _runner_up(best: pd.Series, second: pd.Series, metric: str) -> str:
    found = f"Next comes {second['name']} with {value_text(metric, second[metric])}"
    if second[metric] <= best[f"{metric}_high"]:
        return f"{found}, which the measurement cannot tell apart."
    return f"{found}."


def _knee(able: pd.DataFrame, objectives: Sequence[str], shown: tuple[str, str]) -> Pick:
    front = able[able["on_front"]]
    points = np.column_stack([minimised(METRICS[metric], front[metric].to_numpy()) for metric in objectives])
    at = knee(points)
    gone = ways(points)[at]
    parts = [
        f"{100 * way:.0f} % of the way to the best {label_in_sentence(metric)}"
        for metric, way, spread in zip(objectives, gone, np.ptp(points, axis=0), strict=True)
        if spread > 0
    ]
    reason = f"It goes {_and(parts)}: multiplied, more than any other of the {len(front)} maps on the front."
    if not gone.all():
        reason = f"It goes {_and(parts)}, and each of the {len(front)} maps on the front is the worst in something."
    if not parts:
        reason = "It is the only map on the front."
    return _pick("Knee", front.iloc[at], shown, reason)


def _pick(title: str, row: pd.Series, shown: tuple[str, str], reason: str) -> Pick:
    metrics = (*shown, "weight_memory_mib")
    figures = ", ".join(f"{label_in_sentence(metric)} {value_text(metric, row[metric])}" for metric in metrics)
    figures = figures[0].upper() + figures[1:]
    return Pick(title=title, number=int(row["number"]), name=str(row["name"]), figures=figures, reason=reason)


def _and(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
