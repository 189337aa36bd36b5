"""What every figure shares: margins, legend, hover, and a zoom that survives new data."""

from typing import Any

import plotly.graph_objects as go

#: Plotly's own buttons only get in the way; double click resets the zoom.
CONFIG: dict[str, Any] = {"displayModeBar": False, "responsive": True}


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
