"""The layers that explain the difference between two maps."""

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.labels import short_names
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import BASELINE, FAINT, QUIET, STRONG
from dashboard.formatting import in_chart
from dashboard.tables.layers import Gap

#: Most layers with a bar each, by the size of their change; the others share one bar.
_MOST_NAMED = 12
_ROW_PIXELS, _AROUND_PIXELS = 24, 70
_REST, _UNEXPLAINED, _NOISE = "{} other layers", "Not explained by layers", "Within measurement noise"


def gap_figure(diff: pd.DataFrame, column: str, gap: Gap, *, title: str, revision: str) -> go.Figure:
    """Return one bar per layer that differs, negative if it saves, and last the unexplained part of the measurement.

    Args:
        diff: ``dashboard.tables.layers.diff_frame``.
        column: its column to explain.
        gap: the measured and the predicted sum of the column.
        title: title of the axis, with the unit.
        revision: see ``layout.finish``.
    """
    parts = _parts(diff, column)
    names, values = [in_chart(name) for name in parts], list(parts.values())
    colors = [STRONG if value < 0 else BASELINE for value in values]
    if gap.measured is not None:
        names.append(_NOISE if gap.rest_is_noise else _UNEXPLAINED)
        values.append(gap.rest)
        colors.append(FAINT)
    bars = go.Bar(
        x=values,
        y=list(range(len(names))),
        orientation="h",
        marker={"color": colors},
        customdata=names,
        hovertemplate="<b>%{customdata}</b><br>%{x:+.3~g}<extra></extra>",
    )
    figure = Drawing(bars)
    figure.update_xaxes(title=title, gridcolor=QUIET, zeroline=True, zerolinecolor=FAINT, nticks=5, exponentformat="e")
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(names))),
        ticktext=short_names(names),
        automargin=True,
        showgrid=False,
    )
    return finish(figure, height=_ROW_PIXELS * len(names) + _AROUND_PIXELS, revision=revision, legend=False)


def _parts(diff: pd.DataFrame, column: str) -> dict[str, float]:
    """Return layer -> its change, largest first, and the sum of the other layers."""
    largest = diff.sort_values(column, key=lambda values: -values.abs(), kind="stable")
    named, rest = largest[:_MOST_NAMED], largest[_MOST_NAMED:]
    parts = {str(layer): float(value) for layer, value in zip(named["layer"], named[column], strict=True)}
    return parts | ({_REST.format(len(rest)): float(rest[column].sum())} if len(rest) else {})
