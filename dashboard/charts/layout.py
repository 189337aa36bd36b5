"""What every figure shares: margins, legend, hover, and a zoom that survives new data."""

from typing import Any

import plotly.graph_objects as go

#: Plotly's own buttons only get in the way.
CONFIG: dict[str, Any] = {"displayModeBar": False, "responsive": True}
#: Where there is something to zoom into, buttons do it: dragging would keep a phone from scrolling past.
BOX_CONFIG: dict[str, Any] = {"displaylogo": False, "modeBarButtons": [["select2d"]], "responsive": True}
ZOOM_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    "responsive": True,
}


class Drawing(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A figure that is turned into plain data once, however often it is shown; not to be changed after that."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain data, which nobody may change."""
        if "_plain" not in self.__dict__:
            self._plain: dict[str, Any] = super().to_dict()
        return self._plain


def finish(figure: go.Figure, *, height: int, revision: str, legend: bool = True) -> go.Figure:
    """Return ``figure`` with the shared layout.

    Args:
        figure: the figure, changed in place.
        height: in pixels.
        revision: as long as it stays the same, the reader's zoom survives new data (``uirevision``).
        legend: whether traces are named above the plot.
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
