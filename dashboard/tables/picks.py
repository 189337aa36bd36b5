"""Picks maps from a front and explains each pick. Pure functions of data frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from autotune.metrics.catalog import METRICS
from autotune.metrics.objectives import minimised
from autotune.metrics.pareto import knee, ways
from dashboard.formatting import label_in_sentence, value_text
from dashboard.tables.trials import full_precision_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A picked map, and the reason."""

    #: Why it was picked, such as ``Fastest``.
    title: str
    #: Number of its trial.
    number: int
    name: str
    #: Its most important figures, as text.
    figures: str
    #: Explanation of the pick, in one or two sentences.
    reason: str


def picks(frame: pd.DataFrame, x: str, y: str, objectives: Sequence[str]) -> list[Pick]:
    """Return the fastest, the smallest and the most balanced map within the limits; empty if none is.

    Args:
        frame: rows of ``dashboard.tables.trials.judged``.
        x: latency that decides which map is the fastest.
        y: quality that breaks ties.
        objectives: objectives of the job, which the knee balances.
    """
    feasible = frame[frame["feasible"]].dropna(subset=[x, y])
    if feasible.empty:
        return []
    reference = full_precision_row(frame)
    return [
        _extreme("Fastest", feasible, x, y, (x, y), reference),
        _extreme("Smallest", feasible, "weight_memory_mib", x, (x, y), reference),
        _knee(feasible, objectives, (x, y)),
    ]


def merged(found: Sequence[Pick]) -> list[Pick]:
    """Return the picks with those of the same map as one, such as ``Fastest and smallest``."""
    by_map: dict[int, list[Pick]] = {}
    for pick in found:
        by_map.setdefault(pick.number, []).append(pick)
    return [same[0] if len(same) == 1 else _as_one(same) for same in by_map.values()]


def _as_one(same: Sequence[Pick]) -> Pick:
    first, *others = [pick.title for pick in same]
    return replace(
        same[0],
        title=_and([first, *map(str.lower, others)]),
        reason=" ".join(f"{pick.title}: {pick.reason}" for pick in same),
    )


def _extreme(
    title: str, feasible: pd.DataFrame, metric: str, then: str, shown: tuple[str, str], reference: pd.Series | None
) -> Pick:
    keys = [minimised(METRICS[name], feasible[name].to_numpy()) for name in (then, metric)]
    ranked = feasible.iloc[np.lexsort(keys)]
    best = ranked.iloc[0]
    reason = "Equal to full precision."
    if reference is not None and best[metric] != reference[metric]:
        share = 100 * abs(best[metric] / reference[metric] - 1)
        reason = f"{share:.1f} % {'less' if best[metric] < reference[metric] else 'more'} than full precision."
    if len(ranked) > 1:
        reason += " " + _runner_up(best, ranked.iloc[1], metric)
    return _pick(title, best, shown, reason)


def _runner_up(best: pd.Series, second: pd.Series, metric: str) -> str:
    found = f"The runner-up is {second['name']} with {value_text(metric, second[metric])}"
    if second[metric] <= best[f"{metric}_high"]:
        return f"{found}, within the measurement uncertainty."
    return f"{found}."


def _knee(feasible: pd.DataFrame, objectives: Sequence[str], shown: tuple[str, str]) -> Pick:
    front = feasible[feasible["on_front"]]
    points = np.column_stack([minimised(METRICS[metric], front[metric].to_numpy()) for metric in objectives])
    at = knee(points)
    shares = ways(points)[at]
    parts = [
        f"{100 * share:.0f} % of the way to the best {label_in_sentence(metric)}"
        for metric, share, spread in zip(objectives, shares, np.ptp(points, axis=0), strict=True)
        if spread > 0
    ]
    reason = (
        f"It covers {_and(parts)}; the product of these shares is the largest of the {len(front)} maps on the front."
    )
    if not shares.all():
        reason = f"It covers {_and(parts)}; each of the {len(front)} maps on the front is the worst in one objective."
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
