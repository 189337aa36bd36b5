"""The front: quality over a latency percentile, with one point per measured candidate."""

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from autotune.jobs.records import FrontRecord
from autotune.metrics.catalog import METRICS
from dashboard.charts.labels import note_box, sides
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import BASELINE, FAINT, GUIDE, LIMIT, QUIET, STRONG
from dashboard.charts.zoom import Zoom
from dashboard.formatting import axis_title, figure_text, in_chart, interval_text
from dashboard.tables.trials import Limit, staircase
from workers.timing.estimates import Figure

#: Pixels by which a ring is wider than its marker.
_RING = 10.0
#: Diameter in pixels of the candidate with the most weight memory, and of the smallest marker drawn.
_LARGEST, _SMALLEST = 22.0, 8.0
_HOVERED = ("latency_p50_ms", "latency_p95_ms", "latency_ratio", "accuracy", "divergence", "weight_memory_mib")
#: Length of the shade of a limit, in spans of the axis, so that its end stays out of sight after zooming out.
_SHADE_SPANS = 20.0
#: Smallest value to which a logarithmic axis can be zoomed.
_LEAST = 1e-12
#: Height in pixels: with the recommendation above it, the chart fits into the first screen of a laptop.
_HEIGHT = 430
#: Name of a trace of labels -> size of the plot for which it places them, as for ``labels.sides``. They are the last
#: two traces in this order: the style sheet hides the first one on phones, and elsewhere the other one, which has room
#: for the labels of the picks only.
_LABELS = {"WideLabels": (1.0, 1.0), "NarrowLabels": (0.5, 0.75)}
#: Share of the axis left of the fastest map, to make room for its name.
_ROOM_FOR_WORDS = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A group of points with a common style."""

    name: str
    color: str
    symbol: str = "circle"
    opacity: float = 1.0


_DOMINATED = _Group(name="Dominated", color=FAINT, opacity=0.6)
_INFEASIBLE = _Group(name="Breaks a limit (hollow)", color=FAINT, opacity=0.8)
_FRONT = _Group(name="On the front", color=STRONG)
_BASELINE = _Group(name="Baseline", color=BASELINE, symbol="diamond")
#: Symbols of the backends of one job, that of the reference first; colours tell baselines apart then.
_SYMBOLS = ("circle", "square", "triangle-up", "pentagon", "star")


def front_figure(
    points: pd.DataFrame,
    *,
    x: str,
    y: str,
    revision: str,
    x_limits: Sequence[Limit] = (),
    y_limits: Sequence[Limit] = (),
    marked: Mapping[int, Sequence[str]] | None = None,
    zoom: Zoom | None = None,
) -> go.Figure:
    """Return the front of ``x`` against ``y``.

    The ``customdata`` of each point is its trial number and its hover text. Area is weight memory; hollow points break
    a limit. Baselines and marked points have a label, unless it would cover a more important one.

    Args:
        points: rows of ``dashboard.tables.trials.with_misses`` that have both metrics.
        x: metric on the x axis, which is linear.
        y: metric on the y axis, which is logarithmic for logarithmic metrics.
        revision: see ``layout.finish``.
        x_limits: limits on ``x``.
        y_limits: limits on ``y``.
        marked: trial number -> lines written at the point, which gets a ring and its confidence intervals.
        zoom: the part to show; None shows everything.
    """
    styled = _with_style(points, x, y)
    logarithmic = METRICS[y].logarithmic
    x_range = _range(styled["x"], x_limits, left=_ROOM_FOR_WORDS)
    y_range = _range(np.log10(styled["y"]) if logarithmic else styled["y"], _scaled(y_limits, logarithmic))
    if zoom is not None:
        x_range = zoom.x_span
        y_range = _logarithms(zoom.y_span) if logarithmic else zoom.y_span
    labelled = _with_labels(styled, marked or {})
    across, up = _shares(labelled["x"], x_range), _shares(labelled["y"], y_range, logarithmic)
    beside = [(at, limit.label) for limit, at in _placed(x_limits, x_range)]
    below = [(at, limit.label) for limit, at in _placed(y_limits, y_range, logarithmic)]
    figure = Drawing(_front_line(styled[styled["on_front"]], METRICS[y].maximise))
    for group in (_DOMINATED, _INFEASIBLE, _FRONT, _BASELINE):
        figure.add_trace(_markers(styled[styled["group"] == group.name], group))
    for symbol, backend in _backends(styled):
        figure.add_trace(_legend_of(symbol, backend))
    figure.add_trace(_rings(styled[styled["number"].isin(list(marked or {}))]))
    for name, (width, height) in _LABELS.items():
        notes = [note_box(width * at, height, text) for at, text in beside]
        notes += [note_box(0.0, height * at, text) for at, text in below]
        points_at = [width * at for at in across], [height * at for at in up]
        markers = labelled["around"].tolist()
        lines = labelled["lines"] if width == 1.0 else labelled["lines"].where(~labelled["later"], ())
        found = sides(*points_at, lines.tolist(), notes, markers=markers, size=(width, height))
        side = pd.Series(found, index=labelled.index, dtype=object)
        figure.add_trace(_labels(labelled.assign(side=side).dropna(subset="side"), name))
    figure.update_xaxes(title=axis_title(x), range=x_range, gridcolor=QUIET, zeroline=False, fixedrange=True)
    figure.update_yaxes(
        title=axis_title(y),
        range=y_range,
        fixedrange=True,
        gridcolor=QUIET,
        zeroline=False,
        type="log" if logarithmic else "linear",
        dtick=1 if logarithmic else None,
        exponentformat="power",
    )
    for limit in x_limits:
        _draw_limit(figure, limit, "x", x_range, logarithmic=False)
    for limit in y_limits:
        _draw_limit(figure, limit, "y", y_range, logarithmic=logarithmic)
    return finish(figure, height=_HEIGHT, revision=revision)


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
    figure = Drawing(line)
    figure.update_xaxes(title="Trials measured", gridcolor=QUIET, zeroline=False, range=(0, trials + 1))
    figure.update_yaxes(title="Hypervolume", gridcolor=QUIET, zeroline=False, nticks=4)
    return finish(figure, height=200, revision=revision, legend=False)


def _with_style(points: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return the points with columns for drawing: x, y, error bars, size, group and hover."""
    styled = points.copy()
    for axis, metric in (("x", x), ("y", y)):
        values = points[metric]
        if METRICS[metric].logarithmic:
            values = _on_log_axis(values)
        styled[axis] = values
        styled[f"{axis}_above"] = (points[f"{metric}_high"] - values).clip(lower=0)
        styled[f"{axis}_below"] = (values - points[f"{metric}_low"]).clip(lower=0)
    memory = points["weight_memory_mib"].astype(float)
    most = memory.max()
    # Area, not diameter, represents memory.
    styled["size"] = (_LARGEST * (memory / most) ** 0.5).fillna(_SMALLEST).clip(lower=_SMALLEST)
    rows = points.to_dict("records")
    styled["group"] = [_group_of(row).name for row in rows]
    styled["hover"] = [_hover(row) for row in rows]
    symbols = {backend: symbol for symbol, backend in _backends(points)}
    styled["symbol"] = [symbols.get(row["backend"]) or _group_of(row).symbol for row in rows]
    return styled


def _backends(points: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the symbol and the name of each backend, that of the reference first; none if there is only one."""
    found = [name for _, name in sorted(set(zip(points["elsewhere"], points["backend"], strict=True)))]
    return list(zip(itertools.cycle(_SYMBOLS), found, strict=False)) if points["elsewhere"].any() else []


def _legend_of(symbol: str, backend: str) -> go.Scatter:
    """Return an entry of the legend, without points."""
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=in_chart(backend),
        marker={"symbol": symbol, "color": FAINT, "size": _LARGEST / 2},
        hoverinfo="skip",
    )


def _on_log_axis(values: pd.Series) -> pd.Series:
    """Return ``values`` with those that have no logarithm, such as 0, moved below the smallest positive one."""
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
    if not math.isnan(row["static"]):
        lines.append(f"Quantized activations: {100 * row['static']:.0f} % static")
    if row["misses"]:
        lines.append(f"Breaks: {in_chart(row['misses'])}")
    return "<br>".join(lines)


def _front_line(front: pd.DataFrame, maximise: bool) -> go.Scatter:
    """Return the staircase through the members of the front that are undominated on the two axes shown."""
    steps = staircase(front, maximise=maximise)
    return go.Scatter(
        x=steps["x"].tolist(),
        y=steps["y"].tolist(),
        mode="lines",
        name="Front",
        line={"color": GUIDE, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )


def _with_labels(styled: pd.DataFrame, marked: Mapping[int, Sequence[str]]) -> pd.DataFrame:
    """Return the points, those with the most important labels first, with the lines of each label."""
    lines = [
        (
            *marked.get(number, ()),
            *((str(name).removeprefix("uniform "),) if group == _BASELINE.name else ()),
        )
        for number, name, group in zip(styled["number"], styled["name"], styled["group"], strict=True)
    ]
    first = ~styled["number"].isin(list(marked))
    # Labels of picked points are beside the ring.
    around = styled["size"].where(first, styled["size"] + _RING)
    return styled.assign(
        lines=pd.Series(lines, index=styled.index, dtype=object), around=around, later=first
    ).sort_values("later", kind="stable")


def _labels(points: pd.DataFrame, name: str) -> go.Scatter:
    return go.Scatter(
        x=points["x"].tolist(),
        y=points["y"].tolist(),
        mode="markers+text",
        name=name,
        # Invisible, but Plotly puts text beside a marker, not on it.
        marker={"color": "rgba(0, 0, 0, 0)", "size": points["around"].tolist(), "line": {"width": 0}},
        text=["<br>".join(in_chart(line) for line in lines) for lines in points["lines"]],
        textposition=points["side"].tolist(),
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _markers(points: pd.DataFrame, group: _Group) -> go.Scatter:
    return go.Scatter(
        x=points["x"].tolist(),
        y=points["y"].tolist(),
        mode="markers",
        name=group.name,
        showlegend=len(points) > 0,
        opacity=group.opacity,
        marker={
            "color": group.color,
            "opacity": 1.0,
            "symbol": [
                symbol if feasible else f"{symbol}-open"
                for symbol, feasible in zip(points["symbol"], points["feasible"], strict=True)
            ],
            "size": points["size"].tolist(),
            "line": {"width": [0.0 if feasible else 1.5 for feasible in points["feasible"]], "color": group.color},
        },
        cliponaxis=False,
        customdata=points[["number", "hover"]].to_numpy(dtype=object).tolist(),
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _rings(picked: pd.DataFrame) -> go.Scatter:
    """Return a ring and the confidence intervals at each picked point; those of all points would hide the points."""
    return go.Scatter(
        x=picked["x"].tolist(),
        y=picked["y"].tolist(),
        mode="markers",
        name="Picked",
        marker={
            "symbol": "circle-open",
            "color": GUIDE,
            "size": [size + _RING for size in picked["size"]],
            "line": {"width": 2.5},
        },
        error_x=_bars(picked, "x"),
        error_y=_bars(picked, "y"),
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _bars(points: pd.DataFrame, axis: str) -> dict[str, object] | None:
    above, below = points[f"{axis}_above"], points[f"{axis}_below"]
    if above.isna().all():
        return None
    return {
        "type": "data",
        "array": above.fillna(0).tolist(),
        "arrayminus": below.fillna(0).tolist(),
        "color": GUIDE,
        "thickness": 1.5,
        "width": 4,
    }


def _range(values: pd.Series, limits: Sequence[Limit], left: float = 0.1) -> tuple[float, float]:
    """Return an axis range that contains all points and limits, with a margin."""
    bounds = [*values.tolist(), *(limit.value for limit in limits)] or [0.0, 1.0]
    low, high = min(bounds), max(bounds)
    span = high - low or abs(high) or 10.0
    return low - left * span, high + 0.1 * span


def _logarithms(span: tuple[float, float]) -> tuple[float, float]:
    low, high = (math.log10(max(bound, _LEAST)) for bound in span)
    return low, high


def _scaled(limits: Sequence[Limit], logarithmic: bool) -> list[Limit]:
    """Return the limits in axis coordinates: their logarithms on a logarithmic axis."""
    return [replace(limit, value=math.log10(limit.value)) for limit in limits] if logarithmic else list(limits)


def _shares(values: pd.Series, span: tuple[float, float], logarithmic: bool = False) -> list[float]:
    """Return the positions of ``values`` on an axis, from 0 at its start to 1 at its end."""
    scaled = np.log10(values) if logarithmic else values
    return [(value - span[0]) / (span[1] - span[0]) for value in scaled.tolist()]


def _placed(
    limits: Sequence[Limit], span: tuple[float, float], logarithmic: bool = False
) -> Iterator[tuple[Limit, float]]:
    """Yield the limits with their positions on an axis, from 0 at its start to 1 at its end."""
    values = pd.Series([limit.value for limit in limits], dtype=float)
    yield from zip(limits, _shares(values, span, logarithmic), strict=True)


def _draw_limit(figure: go.Figure, limit: Limit, axis: str, span: tuple[float, float], logarithmic: bool) -> None:
    """Draw a limit as a dashed line and shade the side that breaks it."""
    far = _SHADE_SPANS * (span[1] - span[0])
    end = span[1] + far if limit.at_most else span[0] - far
    lengthwise = {f"{axis}0": limit.value, f"{axis}1": 10.0**end if logarithmic else end}
    shade = {"fillcolor": LIMIT, "opacity": 0.08, "line_width": 0, "layer": "below"}
    line = {"line": {"color": LIMIT, "width": 1.5, "dash": "dash"}}
    note = {"annotation_text": in_chart(limit.label), "annotation_font_size": 12}
    if axis == "x":
        figure.add_vline(x=limit.value, annotation_position="top left", **line, **note)
    else:
        figure.add_hline(y=limit.value, annotation_position="bottom left", **line, **note)
    if logarithmic:  # Plotly positions lines by value but annotations by logarithm
        figure.layout.annotations[-1].y = math.log10(limit.value)
    (figure.add_vrect if axis == "x" else figure.add_hrect)(**lengthwise, **shade)
