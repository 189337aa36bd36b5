"""The layers of a model: their sensitivities, and their choices on the front."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.labels import short_names
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import MODE_COLORS, PRECISIONS, QUIET
from dashboard.formatting import in_chart
from dashboard.tables.layers import MODES, mode_of
from search_spaces.choice import CHOICES, Method

_ROW_PIXELS, _AROUND_PIXELS = 22, 110
#: Room for half of the label at the end of an axis.
_LAST_LABEL_PIXELS = 20
#: Divergence from low to high; light is harmless on white, and no colour is lost on black.
_LOSSES = ((0.0, "#DCE9F5"), (0.5, "#F2B24C"), (1.0, "#B3261E"))
#: Most characters of a name beside a row; its end tells more than its start.
_LONGEST = 26
#: Hatches distinguish the activation modes of one precision without colour.
_HATCHES = {
    mode: {"shape": shape, "fillmode": "overlay", "fgcolor": "#111111", "fgopacity": 0.6, "size": 6, "solidity": 0.2}
    for mode, shape in zip(MODES, ("", "/", ".", ""), strict=True)
}


def sensitivity_figure(layers: pd.DataFrame, revision: str) -> go.Figure:
    """Return a heat map of expected divergences, layer x choice, with the most sensitive layer on top.

    A choice that a layer cannot take has no cell; one without a loss has the colour of the smallest loss.

    Args:
        layers: rows of ``dashboard.tables.layers.sensitivity_frame``.
        revision: see ``layout.finish``.
    """
    names = list(dict.fromkeys(layers["layer"]))
    choices = [choice for choice in CHOICES if choice in set(layers["choice"])]
    table = layers.pivot(index="layer", columns="choice").reindex(names)
    losses = table["divergence"][choices].to_numpy(dtype=float)
    lossy = losses[losses > 0]
    least = float(lossy.min()) if len(lossy) else 1.0
    figure = Drawing(
        go.Heatmap(
            z=np.log10(np.where(losses > 0, losses, np.where(losses == 0, least, np.nan))).tolist(),
            x=choices,
            y=list(range(len(names))),
            colorscale=_LOSSES,
            xgap=2,
            ygap=2,
            colorbar=_loss_key(lossy),
            hoverongaps=False,
            customdata=[
                [[in_chart(name), f"{loss:.2e}", f"{saved:+.3f}"] for loss, saved in zip(row, times, strict=True)]
                for name, row, times in zip(names, losses, table["saved_ms"][choices].to_numpy(), strict=True)
            ],
            hovertemplate="<b>%{customdata[0]}</b><br>%{x}: divergence %{customdata[1]}<br>"
            "saves %{customdata[2]} ms<extra></extra>",
        )
    )
    figure.update_xaxes(side="top", autotickangles=[0, -90], showgrid=False)
    _name_rows(figure, names)
    return finish(figure, height=_ROW_PIXELS * len(names) + 2 * _AROUND_PIXELS, revision=revision, legend=False)


def _loss_key(losses: npt.NDArray[np.float64]) -> dict[str, object]:
    """Return a colour bar with a tick at each power of ten."""
    powers = range(math.ceil(np.log10(losses.min())), math.floor(np.log10(losses.max())) + 1) if len(losses) else []
    return {
        "title": {"text": "Expected divergence", "side": "top"},
        "orientation": "h",
        "x": 0.0,
        "xanchor": "left",
        "y": 0.0,
        "yanchor": "top",
        "len": 1.0,
        "tickvals": list(powers),
        "ticktext": [f"1e{power}" for power in powers],
        "thickness": 12,
        "outlinewidth": 0,
    }


def _is_refined(choice: str) -> bool:
    """Return whether a choice differs from another one only by its method, which has no colour."""
    return CHOICES[choice].method is not Method.PLAIN


def choices_figure(choices: pd.DataFrame, revision: str) -> go.Figure:
    """Return how often each layer takes each choice, with one bar per layer in execution order.

    Args:
        choices: ``dashboard.tables.layers.choice_frame``.
        revision: see ``layout.finish``.
    """
    names = list(dict.fromkeys(choices["layer"]))
    figure = Drawing()
    for choice in CHOICES:
        mine = choices[choices["choice"] == choice]
        if len(mine):
            mode, (color, _) = mode_of(CHOICES[choice]), PRECISIONS[CHOICES[choice].precision]
            rows = [names.index(name) for name in mine["layer"]]
            bars = _shares(mine["share"].tolist(), rows, choice, color, mode)
            figure.add_trace(bars.update(marker_pattern_shape="x") if _is_refined(choice) else bars)
    _lay_out_shares(figure, "Share of the front", names)
    return _finish_shares(figure, len(names), revision)


def roles_figure(roles: pd.DataFrame, revision: str) -> go.Figure:
    """Return the shares of the activation modes, with one bar per type of layer.

    Args:
        roles: ``dashboard.tables.layers.role_frame``.
        revision: see ``layout.finish``.
    """
    figure = Drawing()
    for mode in MODES:
        if roles[mode].any():
            figure.add_trace(_shares(roles[mode].tolist(), list(range(len(roles))), mode, MODE_COLORS[mode], mode))
    names = [f"{row.role} ({row.layers})" for row in roles.itertuples()]
    _lay_out_shares(figure, "Share of the layers", names)
    return _finish_shares(figure, len(names), revision)


def _shares(shares: list[float], rows: list[int], name: str, color: str, mode: str) -> go.Bar:
    return go.Bar(
        x=shares,
        y=rows,
        orientation="h",
        name=name,
        marker={"color": color, "pattern": _HATCHES[mode]},
        hovertemplate=f"{name}: %{{x:.0%}}<extra></extra>",
    )


def _lay_out_shares(figure: go.Figure, title: str, names: list[str]) -> None:
    figure.update_layout(barmode="stack", bargap=0.12)
    figure.update_xaxes(title=title, range=(0, 1), tickformat=".0%", gridcolor=QUIET, zeroline=False)
    _name_rows(figure, names)


def _finish_shares(figure: go.Figure, rows: int, revision: str) -> go.Figure:
    height = _ROW_PIXELS * rows + _AROUND_PIXELS
    return finish(figure, height=height, revision=revision).update_layout(margin_r=_LAST_LABEL_PIXELS)


def _name_rows(figure: go.Figure, names: list[str]) -> None:
    figure.update_yaxes(
        range=(len(names) - 0.4, -0.6),
        tickvals=list(range(len(names))),
        ticktext=[
            in_chart(name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}") for name in short_names(names)
        ],
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
