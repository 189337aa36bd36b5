"""The layers of a model: their sensitivities, and their choices on the front."""

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.labels import short_names
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import CHOICE_SYMBOLS, MODE_COLORS, PRECISIONS, QUIET
from dashboard.formatting import in_chart
from dashboard.tables.layers import MODES, mode_of
from search_spaces.choice import CHOICES, Method

_ROW_PIXELS, _AROUND_PIXELS = 22, 110
#: Hatches distinguish the activation modes of one precision without colour.
_HATCHES = {
    mode: {"shape": shape, "fillmode": "overlay", "fgcolor": "#111111", "fgopacity": 0.6, "size": 6, "solidity": 0.2}
    for mode, shape in zip(MODES, ("", "/", ".", ""), strict=True)
}


def sensitivity_figure(layers: pd.DataFrame, revision: str) -> go.Figure:
    """Return each layer's expected divergence by choice, most sensitive layer on top.

    Args:
        layers: rows of ``dashboard.tables.layers.sensitivity_frame``.
        revision: see ``layout.finish``.
    """
    names = list(dict.fromkeys(layers["layer"]))
    figure = Drawing()
    for choice in CHOICES:
        mine = layers[(layers["choice"] == choice) & (layers["divergence"] > 0)]
        if len(mine):
            figure.add_trace(
                go.Scatter(
                    x=mine["divergence"].tolist(),
                    y=[names.index(name) for name in mine["layer"]],
                    mode="markers",
                    name=choice,
                    marker={
                        "color": PRECISIONS[CHOICES[choice].precision][0],
                        "symbol": CHOICE_SYMBOLS[mode_of(CHOICES[choice])] + ("-open" if _is_refined(choice) else ""),
                        "size": 10,
                        # An open symbol consists of its outline only.
                        "line": {"width": 2} if _is_refined(choice) else {"width": 1, "color": QUIET},
                    },
                    customdata=[
                        [in_chart(name), f"{saved:+.3f}"]
                        for name, saved in zip(mine["layer"], mine["saved_ms"], strict=True)
                    ],
                    hovertemplate=f"<b>%{{customdata[0]}}</b><br>{choice}: divergence %{{x:.2e}}<br>"
                    "saves %{customdata[1]} ms<extra></extra>",
                )
            )
    figure.update_xaxes(
        title="Expected divergence",
        type="log",
        gridcolor=QUIET,
        dtick=1,
        exponentformat="power",
    )
    _name_rows(figure, names)
    return finish(figure, height=_ROW_PIXELS * len(names) + _AROUND_PIXELS, revision=revision)


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
    return finish(figure, height=_ROW_PIXELS * len(names) + _AROUND_PIXELS, revision=revision)


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
    return finish(figure, height=_ROW_PIXELS * len(names) + _AROUND_PIXELS, revision=revision)


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


def _name_rows(figure: go.Figure, names: list[str]) -> None:
    figure.update_yaxes(
        range=(len(names) - 0.4, -0.6),
        tickvals=list(range(len(names))),
        ticktext=[in_chart(name) for name in short_names(names)],
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
