"""The part of a chart the reader looks at. The URL holds it: Streamlit forgets a chart's own zoom with new data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from autotune.metrics.catalog import METRICS

#: Beside the outermost points: a share of their span, and a ratio on logarithmic axes.
_AIR, _AIR_RATIO = 0.1, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """A box on two axes, in their units."""

    #: Metric across, and from where to where.
    x: str
    x_span: tuple[float, float]
    #: Metric up, and from where to where.
    y: str
    y_span: tuple[float, float]

    @classmethod
    def parse(cls, text: str | None, x: str, y: str) -> Self | None:
        """Return the zoom in the URL; None if there is none for these axes."""
        parts = (text or "").split(",")
        if len(parts) != 6 or parts[:2] != [x, y]:
            return None
        try:
            spans = [float(part) for part in parts[2:]]
        except ValueError:
            return None
        zoom = cls(x=x, x_span=(spans[0], spans[1]), y=y, y_span=(spans[2], spans[3]))
        return zoom if zoom._is_box() else None

    @classmethod
    def of_boxes(cls, boxes: Sequence[Mapping[str, Any]], x: str, y: str) -> Self | None:
        """Return the zoom into the last box that was drawn; None if none was."""
        if not boxes:
            return None
        spans = {axis: (min(boxes[-1][axis]), max(boxes[-1][axis])) for axis in ("x", "y")}
        zoom = cls(x=x, x_span=spans["x"], y=y, y_span=spans["y"])
        return zoom if zoom._is_box() else None

    @classmethod
    def around(cls, points: pd.DataFrame, x: str, y: str) -> Self | None:
        """Return the zoom that shows all of ``points`` with some air; None if they have no extent on an axis."""
        spans = {}
        for metric in (x, y):
            low, high = float(points[metric].min()), float(points[metric].max())
            if METRICS[metric].logarithmic:
                low = float(points[metric][points[metric] > 0].min())
                spans[metric] = (low / _AIR_RATIO, high * _AIR_RATIO)
            else:
                spans[metric] = (low - _AIR * (high - low), high + _AIR * (high - low))
        zoom = cls(x=x, x_span=spans[x], y=y, y_span=spans[y])
        return zoom if zoom._is_box() else None

    def __str__(self) -> str:
        return ",".join([self.x, self.y, *(f"{bound:.6g}" for bound in (*self.x_span, *self.y_span))])

    def _is_box(self) -> bool:
        bounds = (*self.x_span, *self.y_span)
        return all(map(math.isfinite, bounds)) and self.x_span[0] < self.x_span[1] and self.y_span[0] < self.y_span[1]
