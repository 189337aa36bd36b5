"""Sliders for limits, to show which maps would be feasible and picked with other limits than the job's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Constraint, Kind, metric_of
from dashboard.formatting import label_in_sentence, value_text
from dashboard.tables.trials import full_precision_row

#: The accuracy slider ends this far below the best baseline, relative to it; readers who accept less set no limit.
_ACCURACY_SLACK = 0.1
#: Values of a divergence limit, coarse because divergences are compared by ratios.
_DIVERGENCES = tuple(round(digit * 10.0**power, 6) for power in range(-5, 0) for digit in (1, 2, 5))
NO_LIMIT = "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The ends of a slider."""

    low: float
    high: float
    step: float
    #: The end that means no limit.
    loose: float
    #: Initial position.
    start: float


def scale_of(metric: str, frame: pd.DataFrame, limit: float | None) -> Scale:
    """Return the scale of a slider.

    Its ends depend on the baselines, which are measured first, so the slider of a running job does not jump.

    Args:
        metric: the limited metric.
        frame: ``dashboard.tables.trials.trial_frame``.
        limit: the job's own limit, which must be on the scale; None if it has none.
    """
    known = frame[frame[metric] < OVERLOADED_MS]
    baselines = known[known["baseline"]][metric]
    held = [*(baselines if len(baselines) else known[metric]), *([] if limit is None else [limit])]
    low, high = 0.0, max(held, default=1.0)
    if METRICS[metric].maximise:
        low = min(high - _ACCURACY_SLACK * abs(high), high if limit is None else limit)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-9) / 100.0))
    low, high = math.floor(low / step + 1e-9) * step, (math.ceil(high / step) + 1) * step
    low, high = round(low, 12), round(high, 12)
    loose = low if METRICS[metric].maximise else high
    return Scale(low=low, high=high, step=step, loose=loose, start=loose if limit is None else limit)


def limit_sliders(own: Sequence[Constraint], frame: pd.DataFrame, metrics: Sequence[str]) -> tuple[Constraint, ...]:
    """Show a slider per metric, and return its limits with the job's limits on other metrics.

    Args:
        own: the job's limits, the initial positions.
        frame: ``dashboard.tables.trials.trial_frame`` with at least one measured trial.
        metrics: the metrics to limit.
    """
    for accuracy in (metric for metric in metrics if METRICS[metric].kind is Kind.ACCURACY):
        own = _absolute(own, frame, accuracy)
    limits = [limit for limit in own if limit.metric not in metrics]
    starts = {limit.metric: limit.limit for limit in own}
    with st.container(horizontal=True, gap="small"):
        for metric in metrics:
            slider = _ratio_slider if METRICS[metric].logarithmic else _slider
            value = slider(metric, frame, starts.get(metric))
            if value is not None:
                limits.append(Constraint(metric=metric, limit=value, at_most=not METRICS[metric].maximise))
    return tuple(limits)


def _absolute(own: Sequence[Constraint], frame: pd.DataFrame, accuracy: str) -> Sequence[Constraint]:
    """Return the limits with a single floor per accuracy: the stricter of the absolute and the relative limit."""
    reference = full_precision_row(frame)
    if reference is None:
        return own
    full = float(reference[accuracy])
    drop = metric_of(Kind.ACCURACY_DROP, METRICS[accuracy].split).name
    others = [limit for limit in own if limit.metric not in (accuracy, drop)]
    floors = [limit.limit for limit in own if limit.metric == accuracy]
    floors += [full - limit.limit * abs(full) for limit in own if limit.metric == drop]
    return [*others, Constraint(metric=accuracy, limit=max(floors), at_most=False)] if floors else others


def _slider(metric: str, frame: pd.DataFrame, limit: float | None) -> float | None:
    scale = scale_of(metric, frame, limit)
    decimals = max(0, -math.floor(math.log10(scale.step)))
    value = st.slider(
        _title(metric),
        scale.low,
        scale.high,
        scale.start,
        scale.step,
        format=f"%.{decimals}f {METRICS[metric].unit}".rstrip(),
        key=f"limit_{metric}",
        bind="query-params",
        help="The loosest end of the scale means no limit.",
        width=260,
    )
    return None if math.isclose(value, scale.loose, abs_tol=scale.step / 2) else value


def _ratio_slider(metric: str, frame: pd.DataFrame, limit: float | None) -> float | None:
    values = sorted({*_DIVERGENCES, *([] if limit is None else [limit])})
    names = {value_text(metric, value): value for value in values}
    chosen = st.select_slider(
        _title(metric),
        [*names, NO_LIMIT],
        NO_LIMIT if limit is None else value_text(metric, limit),
        key=f"limit_{metric}",
        bind="query-params",
        width=260,
    )
    return names.get(chosen)


def _title(metric: str) -> str:
    label = label_in_sentence(metric)
    return f"{label[0].upper()}{label[1:]} {'at least' if METRICS[metric].maximise else 'at most'}"
