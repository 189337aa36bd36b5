"""The fronts of several jobs in one chart, relative to each job's full precision."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from autotune.metrics.catalog import METRICS
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import GUIDE, QUIET, SERIES
from dashboard.formatting import in_chart, label_in_sentence

#: Distinguishes jobs without colour.
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
#: Most jobs that can be distinguished.
MOST_JOBS = len(SERIES)
_LARGEST, _SMALLEST = 18.0, 7.0


def compare_figure(fronts: Mapping[str, pd.DataFrame], *, x: str, y: str, revision: str) -> go.Figure:
    """Return one staircase per job; marker area is weight memory relative to full precision.

    Args:
        fronts: job -> ``dashboard.tables.job_comparison.relative_front``, at most ``MOST_JOBS``.
        x: latency on the x axis.
        y: quality on the y axis.
        revision: see ``layout.finish``.
    """
    logarithmic = METRICS[y].logarithmic
    figure = Drawing()
    for index, (job, front) in enumerate(fronts.items()):
        shown = front[front["y"] > 0] if logarithmic else front
        if len(shown):
            figure.add_trace(_staircase(job, shown, index, y))
    if not logarithmic:
        figure.add_hline(y=1.0, line={"color": GUIDE, "width": 1, "dash": "dot"})
    figure.add_vline(x=1.0, line={"color": GUIDE, "width": 1, "dash": "dot"}, annotation_text="full precision")
    quality = METRICS[y].label if logarithmic else f"{METRICS[y].label} relative to full precision"
    figure.update_xaxes(
        title=f"{METRICS[x].label} relative to full precision", gridcolor=QUIET, zeroline=False, tickformat=".0%"
    )
    figure.update_yaxes(
        title=quality,
        gridcolor=QUIET,
        zeroline=False,
        type="log" if logarithmic else "linear",
        dtick=1 if logarithmic else None,
        exponentformat="power",
        tickformat=None if logarithmic else ".1%",
    )
    return finish(figure, height=460, revision=revision).update_layout(showlegend=True)


def _staircase(job: str, front: pd.DataFrame, index: int, y: str) -> go.Scatter:
    digits = ".2e" if METRICS[y].logarithmic else ".2%"
    return go.Scatter(
        x=front["x"].tolist(),
        y=front["y"].tolist(),
        mode="lines+markers",
        name=in_chart(job, 60),
        line={"color": SERIES[index], "width": 1.5, "shape": "hv", "dash": _DASHES[index]},
        marker={
            "symbol": _SYMBOLS[index],
            "size": [max(_SMALLEST, _LARGEST * share**0.5) for share in front["memory"]],
        },
        customdata=[
            [in_chart(name), f"{share:.0%}"] for name, share in zip(front["name"], front["memory"], strict=True)
        ],
        hovertemplate=f"<b>%{{customdata[0]}}</b><br>latency %{{x:.1%}}<br>{label_in_sentence(y)} %{{y:{digits}}}<br>"
        "weights %{customdata[1]}<extra></extra>",
    )
