"""The front: a latency percentile against quality, every measured candidate a point."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from autotune.metrics import METRICS, Figure
from autotune.store.records import FrontRecord
from dashboard.figures.labels import sides
from dashboard.figures.layout import finish
from dashboard.figures.palette import BASELINE, FAINT, LIMIT, QUIET, STRONG
from dashboard.frames import Limit
from dashboard.text import axis_title, figure_text, in_chart, interval_text

#: Diameter in pixels of the candidate with the most weight memory, and of the smallest marker drawn.
_LARGEST, _SMALLEST = 22.0, 8.0
_HOVERED = ("latency_p50_ms", "latency_p95_ms", "latency_ratio", "accuracy", "divergence", "weight_memory_mib")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Points drawn alike."""

    name: str
    color: str
    symbol: str = "circle"
    opacity: float = 1.0
    #: Whether the points' names stand beside them.
    named: bool = False


_DOMINATED = _Group(name="Dominated", color=FAINT, opacity=0.5)
_INFEASIBLE = _Group(name="Breaks a limit (hollow)", color=FAINT, symbol="circle-open", opacity=0.9)
_FRONT = _Group(name="On the front", color=STRONG)
_BASELINE = _Group(name="Baseline", color=BASELINE, symbol="diamond", named=True)


def front_figure(
    points: pd.DataFrame,
    *,
    x: str,
    y: str,
    revision: str,
    x_limits: Sequence[Limit] = (),
    y_limits: Sequence[Limit] = (),
) -> go.Figure:
    """Return the front of ``x`` against ``y``.

    Each point's ``customdata`` is its trial number and its hover text.

    Args:
        points: rows of ``dashboard.frames.trial_frame`` that have both metrics.
        x: metric across, on a linear axis.
        y: metric up, on a logarithmic axis if its differences are ratios.
        revision: see ``layout.finish``.
        x_limits: limits on ``x``.
        y_limits: limits on ``y``; only drawn on a linear axis.
    """
    placed = _placed(points, x, y)
    logarithmic = METRICS[y].logarithmic
    x_range = _range(placed["x"], x_limits)
    y_range = _range(np.log10(placed["y"]), ()) if logarithmic else _range(placed["y"], y_limits)
    placed["side"] = sides(_shares(placed["x"], x_range), _shares(placed["y"], y_range, logarithmic))
    figure = go.Figure(_front_line(placed[placed["on_front"]], METRICS[y].maximise))
    for group in (_DOMINATED, _INFEASIBLE, _FRONT, _BASELINE):
        figure.add_trace(_markers(placed[placed["group"] == group.name], group))
    figure.update_xaxes(title=axis_title(x), range=x_range, gridcolor=QUIET, zeroline=False)
    figure.update_yaxes(
        title=axis_title(y),
        range=y_range,
        gridcolor=QUIET,
        zeroline=False,
        type="log" if logarithmic else "linear",
        dtick=1 if logarithmic else None,
        exponentformat="power",
    )
    _draw_limits(figure, x_limits, () if logarithmic else y_limits, x_range, y_range)
    return finish(figure, height=460, revision=revision)


def hypervolume_figure(fronts: Sequence[FrontRecord], trials: int, revision: str) -> go.Figure:
    """Return the hypervolume of the front over the ``trials`` measured so far."""
    line = go.Scatter(
        x=[*(front.trials for front in fronts), trials],
        y=[*(front.hypervolume for front in fronts), fronts[-1].hypervolume],
        mode="lines",
        line={"color": STRONG, "width": 2, "shape": "hv"},
        customdata=[*(len(front.members) for front in fronts), len(fronts[-1].members)],
        hovertemplate="%{x} trials<br>hypervolume %{y:.4g}<br>%{customdata} maps on the front<extra></extra>",
    )
    figure = go.Figure(line)
    figure.update_xaxes(title="Trials measured", gridcolor=QUIET, zeroline=False, range=(0, trials + 1))
    figure.update_yaxes(title="Hypervolume", gridcolor=QUIET, zeroline=False, nticks=4)
    return finish(figure, height=200, revision=revision, legend=False)


def _placed(points: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return the points with where and how each is drawn: x, y, error bars, size, group and hover."""
    placed = points.copy()
    for axis, metric in (("x", x), ("y", y)):
        values = points[metric]
        if METRICS[metric].logarithmic:
            values = _on_log_axis(values)
        placed[axis] = values
        placed[f"{axis}_above"] = (points[f"{metric}_high"] - values).clip(lower=0)
        placed[f"{axis}_below"] = (values - points[f"{metric}_low"]).clip(lower=0)
    memory = points["weight_memory_mib"].astype(float)
    most = memory.max()
    # Area, not diameter, stands for memory.
    placed["size"] = (_LARGEST * (memory / most) ** 0.5).fillna(_SMALLEST).clip(lower=_SMALLEST)
    placed["group"] = [_group_of(row).name for row in points.to_dict("records")]
    placed["hover"] = [_hover(row) for row in points.to_dict("records")]
    return placed


def _on_log_axis(values: pd.Series) -> pd.Series:
    """Return ``values`` with those that have no logarithm, such as full precision's 0, below the smallest that has."""
    positive = values[values > 0]
    return values.where(values > 0, positive.min() / 3 if len(positive) else 1e-6)


def _group_of(row: Mapping[Hashable, Any]) -> _Group:
    if row["baseline"]:
        return _BASELINE
    if not row["feasible"]:
        return _INFEASIBLE
    return _FRONT if row["on_front"] else _DOMINATED


def _hover(row: Mapping[Hashable, Any]) -> str:
    lines = [f"<b>{in_chart(row['name'])}</b>"]
    for metric in _HOVERED:
        value, low, high = (row[f"{metric}{part}"] for part in ("", "_low", "_high"))
        if math.isnan(value):
            continue
        sampled = not math.isnan(low)
        figure = Figure(value=value, low=low if sampled else None, high=high if sampled else None)
        interval = interval_text(metric, figure)
        lines.append(f"{METRICS[metric].label}: {figure_text(metric, figure)}" + (f" ({interval})" if interval else ""))
    if row["misses"]:
        lines.append(f"Breaks: {in_chart(row['misses'])}")
    return "<br>".join(lines)


def _front_line(front: pd.DataFrame, maximise: bool) -> go.Scatter:
    """Return the staircase through the front's members that are undominated on the two axes shown."""
    ordered = front.sort_values(["x", "y"], ascending=[True, not maximise])
    best = ordered["y"].cummax() if maximise else ordered["y"].cummin()
    steps = ordered[best.ne(best.shift())]
    return go.Scatter(
        x=steps["x"].tolist(),
        y=steps["y"].tolist(),
        mode="lines",
        name="Front",
        line={"color": STRONG, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )


def _markers(points: pd.DataFrame, group: _Group) -> go.Scatter:
    hollow = ~points["feasible"].astype(bool)
    symbols = [f"{group.symbol.removesuffix('-open')}{'-open' if h else ''}" for h in hollow]
    return go.Scatter(
        x=points["x"].tolist(),
        y=points["y"].tolist(),
        mode="markers+text" if group.named else "markers",
        name=group.name,
        showlegend=len(points) > 0,
        opacity=group.opacity,
        marker={"color": group.color, "symbol": symbols, "size": points["size"].tolist(), "line": {"width": 1.5}},
        text=[in_chart(str(name).removeprefix("uniform ")) for name in points["name"]] if group.named else None,
        textposition=points["side"].tolist() if group.named else None,
        cliponaxis=False,
        error_x=_bars(points, "x", group.color),
        error_y=_bars(points, "y", group.color),
        customdata=points[["number", "hover"]].to_numpy(dtype=object).tolist(),
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _bars(points: pd.DataFrame, axis: str, color: str) -> dict[str, object] | None:
    above, below = points[f"{axis}_above"], points[f"{axis}_below"]
    if above.isna().all():
        return None
    return {
        "type": "data",
        "array": above.fillna(0).tolist(),
        "arrayminus": below.fillna(0).tolist(),
        "color": color,
        "thickness": 1,
        "width": 3,
    }


def _range(values: pd.Series, limits: Sequence[Limit]) -> tuple[float, float]:
    """Return an axis range that holds all points and limits with some air."""
    held = [*values.tolist(), *(limit.value for limit in limits)] or [0.0, 1.0]
    low, high = min(held), max(held)
    air = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _shares(values: pd.Series, span: tuple[float, float], logarithmic: bool = False) -> list[float]:
    """Return where ``values`` lie on an axis, from 0 at its start to 1 at its end."""
    scaled = np.log10(values) if logarithmic else values
    return [(value - span[0]) / (span[1] - span[0]) for value in scaled.tolist()]


def _draw_limits(
    figure: go.Figure,
    x_limits: Sequence[Limit],
    y_limits: Sequence[Limit],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    """Draw each limit as a dashed line and shade the side that breaks it."""
    line = {"color": LIMIT, "width": 1.5, "dash": "dash"}
    shade = {"fillcolor": LIMIT, "opacity": 0.07, "line_width": 0, "layer": "below"}
    note = {"annotation_font": {"color": LIMIT, "size": 12}}
    for limit in x_limits:
        text = in_chart(limit.label)
        figure.add_vline(x=limit.value, line=line, annotation_text=text, annotation_position="top left", **note)
        figure.add_vrect(x0=limit.value, x1=x_range[1] if limit.at_most else x_range[0], **shade)
    for limit in y_limits:
        text = in_chart(limit.label)
        figure.add_hline(y=limit.value, line=line, annotation_text=text, annotation_position="bottom left", **note)
        figure.add_hrect(y0=limit.value, y1=y_range[1] if limit.at_most else y_range[0], **shade)
