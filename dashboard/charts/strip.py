"""The map of one candidate: one cell per layer, coloured by precision, with a letter for the activation mode."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import PRECISIONS
from dashboard.formatting import clipped_text, in_chart
from search_spaces.choice import Precision

#: Most cells per row, so that a letter fits into each cell on a phone.
_WRAP = 16
_ROW_PIXELS = 34
#: Width of a cell, as a share of the distance between cells.
_CELL_WIDTH = 0.95


def strip_figure(layers: pd.DataFrame, revision: str) -> go.Figure:
    """Return the strip of ``tables.layers.layer_frame``, in execution order from left to right, then down."""
    rows = blocks(layers["layer"].tolist())
    cells = layers.assign(
        row=[row for row, (_, count) in enumerate(rows) for _ in range(count)],
        column=[column for _, count in rows for column in range(count)],
        hover=[_hover(layer) for layer in layers.to_dict("records")],
    )
    figure = Drawing()
    for precision in Precision:
        mine = cells[cells["precision"] == precision.value]
        if len(mine):
            figure.add_trace(_cells(mine, precision))
    figure.update_layout(barmode="overlay", bargap=0.0)
    figure.update_xaxes(visible=False, range=(0, max(count for _, count in rows)), fixedrange=True)
    figure.update_yaxes(
        autorange="reversed",
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[in_chart(label) for label, _ in rows],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        automargin=True,
    )
    return finish(figure, height=70 + _ROW_PIXELS * len(rows), revision=revision)


def blocks(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return label and length of each row: one row per repeated block of the model, or rows of equal length.

    >>> blocks(["emb", "layer.0.q", "layer.0.k", "layer.1.q", "layer.1.k"])
    [('emb', 1), ('layer.0', 2), ('layer.1', 2)]
    """
    rows: list[tuple[str, int]] = []
    for name in names:
        label = _block_of(name)
        if rows and rows[-1][0] == label:
            rows[-1] = (label, rows[-1][1] + 1)
        else:
            rows.append((label, 1))
    if len(names) < 2 * len(rows) or max(count for _, count in rows) > _WRAP:
        starts = range(0, len(names), _WRAP)
        return [(f"from {start + 1}", min(_WRAP, len(names) - start)) for start in starts]
    return rows


def _block_of(name: str) -> str:
    """Return the last two parts of the path up to its first number; the first part if no parent has a number."""
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return parts[0] if number is None else ".".join(parts[max(0, number - 1) : number + 1])


def _cells(layers: pd.DataFrame, precision: Precision) -> go.Bar:
    color, ink = PRECISIONS[precision]
    return go.Bar(
        x=[_CELL_WIDTH] * len(layers),
        base=layers["column"].tolist(),
        y=layers["row"].tolist(),
        orientation="h",
        width=0.86,
        name=f"{precision.value} ({len(layers)})",
        marker={"color": color},
        text=layers["letter"].tolist(),
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": ink, "size": 13},
        customdata=layers[["layer", "hover"]].to_numpy(dtype=object).tolist(),
        hovertemplate="%{customdata[1]}<extra></extra>",
    )


def _hover(layer: Mapping[Hashable, Any]) -> str:
    lines = [
        f"<b>{in_chart(layer['layer'])}</b>",
        f"{layer['kind']}, {layer['shape']}",
        f"Takes {layer['choice']}, {layer['bytes']}",
        f"{100 * layer['flops_share']:.1f} % of the multiplications",
        f"Calibrated input range {layer['range']}" + clipped_text(layer["clipped"]),
    ]
    if layer["refused"]:
        lines.append(f"Cannot take {in_chart(layer['refused'])}")
    return "<br>".join(lines)
