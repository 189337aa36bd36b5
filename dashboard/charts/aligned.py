"""The costs of each layer of one map: aligned strips of bars over the layers in execution order."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import FAINT, PRECISIONS, QUIET, STRONG
from dashboard.formatting import in_chart
from search_spaces.choice import Precision

#: Most layers whose letters fit, and whose names fit.
_MOST_LETTERS, _MOST_NAMES = 48, 24
#: Height in pixels of the choices, of each strip below, and of the space around a strip.
_CHOICES_PIXELS, _STRIP_PIXELS, _AROUND_PIXELS = 44, 92, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strip:
    """One strip of bars."""

    column: str
    title: str
    #: Plotly number format of the axis and the hovers.
    digits: str


_TIME = _Strip(column="time_share", title="Share of the time of a pass, as probed", digits=".1%")
_WORK = _Strip(column="flops_share", title="Share of the multiplications", digits=".1%")
_BYTES = _Strip(column="weight_mib", title="Weight memory (MiB)", digits=".3~g")
_LOSS = _Strip(column="divergence_share", title="Share of the expected divergence, as probed", digits=".1%")
_CLIPPED = _Strip(column="clipped", title="Share of the inputs that the calibrated range clips", digits=".2%")


def aligned_figure(layers: pd.DataFrame, revision: str) -> go.Figure:
    """Return strips of choices, time, bytes, expected divergence, clipping and calibrated range.

    Without probes, multiplications replace time and divergence is left out. Clipping is left out if there is none.

    Args:
        layers: rows of ``dashboard.tables.layers.layer_frame``: all, or those of a block.
        revision: see ``layout.finish``.
    """
    cells = layers.assign(
        at=range(len(layers)),
        weight_mib=layers["weight_bytes"] / (1 << 20),
        title=[in_chart(name) for name in layers["layer"]],
    )
    probed = cells["latency_ms"].notna().any()
    strips = [_TIME, _BYTES, _LOSS] if probed else [_WORK, _BYTES]
    strips += [_CLIPPED] if (layers["clipped"] > 0).any() else []
    titles = ["Choice", *(strip.title for strip in strips), "Calibrated input range; static layers use it"]
    heights = [_CHOICES_PIXELS, *[_STRIP_PIXELS] * (len(strips) + 1)]
    figure = make_subplots(
        rows=len(heights),
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.07,
        subplot_titles=titles,
        figure=Drawing(),
    )
    for trace in _choices(cells):
        figure.add_trace(trace, row=1, col=1)
    for row, strip in enumerate(strips, start=2):
        figure.add_trace(_bars(cells, strip), row=row, col=1)
        figure.update_yaxes(tickformat=strip.digits, rangemode="tozero", row=row, col=1)
    figure.add_trace(_ranges(cells), row=len(heights), col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    _lay_out(figure, cells["layer"].tolist())
    height = sum(heights) + _AROUND_PIXELS * len(heights) // 2
    return finish(figure, height=height, revision=revision, legend=False).update_layout(margin_t=28)


def _lay_out(figure: go.Figure, names: Sequence[str]) -> None:
    figure.update_layout(barmode="overlay", bargap=0.08)
    figure.update_xaxes(range=(-0.5, len(names) - 0.5), showgrid=False, zeroline=False, showticklabels=False)
    figure.update_yaxes(gridcolor=QUIET, zeroline=False, nticks=4, fixedrange=True)
    figure.update_yaxes(visible=False, row=1, col=1)
    if len(names) <= _MOST_NAMES:
        labels = [in_chart(name, 28) for name in _without_common_start(names)]
        last = sum(name.startswith("yaxis") for name in figure.layout)
        figure.update_xaxes(
            showticklabels=True, tickvals=list(range(len(names))), ticktext=labels, tickangle=-50, row=last
        )


def _without_common_start(names: Sequence[str]) -> list[str]:
    """Return the names without their common leading parts; the last part is always kept."""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1
    common = next((at for at in range(shortest) if len({name[at] for name in parts}) > 1), shortest)
    return [".".join(name[common:]) for name in parts]


def _choices(cells: pd.DataFrame) -> list[go.Bar]:
    lettered = len(cells) <= _MOST_LETTERS
    traces = []
    for precision in Precision:
        mine = cells[cells["precision"] == precision.value]
        color, ink = PRECISIONS[precision]
        traces.append(
            go.Bar(
                x=mine["at"].tolist(),
                y=[1.0] * len(mine),
                marker={"color": color},
                text=mine["letter"].tolist() if lettered else None,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": ink, "size": 12},
                customdata=mine[["title", "choice"]].to_numpy(dtype=object).tolist(),
                hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
            )
        )
    return [trace for trace in traces if len(trace.x)]


def _bars(cells: pd.DataFrame, strip: _Strip) -> go.Bar:
    return go.Bar(
        x=cells["at"].tolist(),
        y=cells[strip.column].tolist(),
        marker={"color": STRONG},
        customdata=cells[["title", "choice"]].to_numpy(dtype=object).tolist(),
        hovertemplate=f"<b>%{{customdata[0]}}</b><br>%{{customdata[1]}}<br>%{{y:{strip.digits}}}<extra></extra>",
    )


def _ranges(cells: pd.DataFrame) -> go.Bar:
    return go.Bar(
        x=cells["at"].tolist(),
        base=cells["low"].tolist(),
        y=(cells["high"] - cells["low"]).tolist(),
        marker={"color": [STRONG if letter == "S" else FAINT for letter in cells["letter"]]},
        customdata=cells[["title", "range"]].to_numpy(dtype=object).tolist(),
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
    )
