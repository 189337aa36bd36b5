"""The shared layout of figures: margins, legend, hover, and a zoom that survives new data."""

from typing import Any

import plotly.graph_objects as go

#: Without Plotly's buttons.
CONFIG: dict[str, Any] = {"displayModeBar": False, "responsive": True}
#: Zooms with buttons, because dragging would prevent scrolling on phones.
BOX_CONFIG: dict[str, Any] = {"displaylogo": False, "modeBarButtons": [["select2d"]], "responsive": True}
ZOOM_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "responsive": True,
}


class Drawing(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A figure that is converted to plain data only once; it must not be changed after it is shown."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain data, which callers must not change."""
        if "_plain" not in self.__dict__:
            self._plain: dict[str, Any] = super().to_dict()
        return self._plain


def finish(figure: go.Figure, *, height: int, revision: str, legend: bool = True) -> go.Figure:
    """Return ``figure`` with the shared layout.

    Args:
        figure: the figure, changed in place.
        height: height in pixels.
        revision: the reader's zoom survives new data as long as this stays the same (``uirevision``).
        legend: whether a legend is shown above the plot.
    """
    return figure.update_layout(
        height=height,
        uirevision=revision,
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0, "title": None},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        hoverlabel={"align": "left"},
        dragmode=False,
    )
