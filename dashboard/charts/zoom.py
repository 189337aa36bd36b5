"""The visible part of a chart. The URL holds it, because Streamlit resets a chart's zoom when data changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from autotune.metrics.catalog import METRICS

#: Margin beyond the outermost points: a share of their span, and a ratio on logarithmic axes.
_MARGIN, _MARGIN_RATIO = 0.1, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """A box on two axes, in their units."""

    #: Metric on the x axis, and its range.
    x: str
    x_span: tuple[float, float]
    #: Metric on the y axis, and its range.
    y: str
    y_span: tuple[float, float]

    @classmethod
    def parse(cls, text: str | None, x: str, y: str) -> Self | None:
        """Parse the zoom in the URL; None if there is none for these axes."""
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
        """Return the zoom to the last box drawn; None without one."""
        if not boxes:
            return None
        spans = {axis: (min(boxes[-1][axis]), max(boxes[-1][axis])) for axis in ("x", "y")}
        zoom = cls(x=x, x_span=spans["x"], y=y, y_span=spans["y"])
        return zoom if zoom._is_box() else None

    @classmethod
    def around(cls, points: pd.DataFrame, x: str, y: str) -> Self | None:
        """Return the zoom that shows all ``points`` with a margin; None if they have no extent on an axis."""
        spans = {}
        for metric in (x, y):
            low, high = float(points[metric].min()), float(points[metric].max())
            if METRICS[metric].logarithmic:
                low = float(points[metric][points[metric] > 0].min())
                spans[metric] = (low / _MARGIN_RATIO, high * _MARGIN_RATIO)
            else:
                spans[metric] = (low - _MARGIN * (high - low), high + _MARGIN * (high - low))
        zoom = cls(x=x, x_span=spans[x], y=y, y_span=spans[y])
        return zoom if zoom._is_box() else None

    def __str__(self) -> str:
        return ",".join([self.x, self.y, *(f"{bound:.6g}" for bound in (*self.x_span, *self.y_span))])

    def _is_box(self) -> bool:
        bounds = (*self.x_span, *self.y_span)
        return all(map(math.isfinite, bounds)) and self.x_span[0] < self.x_span[1] and self.y_span[0] < self.y_span[1]
