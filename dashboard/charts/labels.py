"""Labels in figures: shortens names, and positions them so that they cover as little as possible."""

import math
from collections.abc import Sequence

#: Width and height in pixels of the plot that other sizes are shares of.
_WIDTH, _HEIGHT = 440.0, 300.0
#: Width of a character, height of a line, and height of a note with its padding.
_CHARACTER, _LINE, _NOTE = 0.0125, 0.05, 0.07
#: Diameter in pixels of a marker, if it is not given.
_MARKER_PIXELS = 16.0
#: Half the size of a marker that a label may not cover.
_MARKER_X, _MARKER_Y = 0.015, 0.025
#: A label is astray if the point of another one is at most this many times as far from it as its own; it may rather
#: cover so many points.
_NEAR, _ASTRAY = 1.3, 3
#: Distance of the legend from the plot.
_ABOVE = 0.02
#: Sides of a point by Plotly's name, the best first -> direction to the right and up.
_SIDES = {
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "top right": (1, 1),
    "bottom left": (-1, -1),
}
#: Left, right, lower and upper edge, in shares of the plot.
Box = tuple[float, float, float, float]


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names of layers from the last number before their last part; whole names if these are ambiguous.

    >>> short_names(["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"])
    ['0.output.dense', '1.output.dense']
    >>> short_names(["tower.0", "blocks.1.mlp.0"])
    ['tower.0', '1.mlp.0']
    """
    short = []
    for name in names:
        parts = name.split(".")
        last = max((at for at, part in enumerate(parts[:-1]) if part.isdigit()), default=0)
        short.append(".".join(parts[last:]))
    return short if len(set(short)) == len(set(names)) else list(names)


def sides(
    xs: Sequence[float],
    ys: Sequence[float],
    labels: Sequence[Sequence[str]],
    taken: Sequence[Box] = (),
    *,
    markers: Sequence[float] | None = None,
    size: tuple[float, float] = (1.0, 1.0),
) -> list[str | None]:
    """Return Plotly's ``textposition`` for the label of each point: the side on which it covers the fewest points.

    A side on which it is nearer to the point of another label is taken only if there is hardly another one.

    Args:
        xs: positions from 0 at the left edge of the plot to its width at the right.
        ys: positions from 0 at the bottom to its height at the top.
        labels: the lines of the label of each point, the most important first; none for a point without a label.
        taken: where no label may stand.
        markers: diameters of the points in pixels.
        size: width and height of the plot, as shares of 440 x 300 pixels.

    Returns:
        None for a point without a label, and for a label that would leave the plot or cover a more important one.
    """
    points = list(zip(xs, ys, strict=True))
    named = [point for point, lines in zip(points, labels, strict=True) if lines]
    covered = [*taken]
    found: list[str | None] = []
    for point, lines, marker in zip(points, labels, markers or [_MARKER_PIXELS] * len(points), strict=True):
        boxes = {side: _box(point, lines, side, _gap(marker)) for side in _SIDES} if lines else {}
        free = {side: box for side, box in boxes.items() if _inside(box, size) and not _meets(box, covered)}
        costs = {
            side: sum(_covers(box, other) for other in points) + _ASTRAY * _is_astray(box, point, named)
            for side, box in free.items()
        }
        side = min(costs, key=costs.__getitem__, default=None)
        covered += [free[side]] if side else []
        found.append(side)
    return found


def note_box(x: float, y: float, text: str) -> Box:
    """Return where a note of one line stands: to the left of the right edge ``x``, or from 0 on, and below ``y``."""
    width = _CHARACTER * len(text)
    left = max(0.0, x - width)
    return left, left + width, y - _NOTE, y


def _gap(marker: float) -> float:
    """Return the pixels between the middle of a marker and its label, as Plotly places it."""
    return marker / 2.0 / 0.8 + 1.0


def _box(point: tuple[float, float], lines: Sequence[str], side: str, gap: float) -> Box:
    across, up = _SIDES[side]
    width, height = _CHARACTER * max(map(len, lines)), _LINE * len(lines)
    x, y = point[0] + across * (gap / _WIDTH + width / 2), point[1] + up * (gap / _HEIGHT + height / 2)
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2


def _meets(box: Box, others: Sequence[Box]) -> bool:
    left, right, low, high = box
    return any(left < other[1] and other[0] < right and low < other[3] and other[2] < high for other in others)


def _inside(box: Box, size: tuple[float, float]) -> bool:
    left, right, low, high = box
    return left >= 0 and right <= size[0] and low >= 0 and high <= size[1] + _ABOVE


def _is_astray(box: Box, own: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Return whether another point is about as near to a label as the label's own."""
    return any(_distance(box, other) <= _NEAR * _distance(box, own) for other in others if other != own)


def _distance(box: Box, point: tuple[float, float]) -> float:
    left, right, low, high = box
    across, up = max(left - point[0], 0.0, point[0] - right), max(low - point[1], 0.0, point[1] - high)
    return math.hypot(_WIDTH * across, _HEIGHT * up)


def _covers(box: Box, point: tuple[float, float]) -> bool:
    left, right, low, high = box
    return left - _MARKER_X < point[0] < right + _MARKER_X and low - _MARKER_Y < point[1] < high + _MARKER_Y
