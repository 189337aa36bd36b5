"""Labels in figures: shortens names, and positions them so that they cover as little as possible."""

from collections.abc import Sequence

#: Width of a character, height of a line, and distance from the point, in shares of a plot that is not wide.
_CHARACTER, _LINE, _GAP_X, _GAP_Y = 0.0125, 0.05, 0.025, 0.035
#: Half the size of a marker.
_MARKER_X, _MARKER_Y = 0.015, 0.025
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
    xs: Sequence[float], ys: Sequence[float], labels: Sequence[Sequence[str]], taken: Sequence[Box] = ()
) -> list[str | None]:
    """Return Plotly's ``textposition`` for the label of each point: the side on which it covers the fewest points.

    Args:
        xs: positions from 0 at the left edge of the plot to 1 at the right.
        ys: positions from 0 at the bottom to 1 at the top.
        labels: the lines of the label of each point, the most important first; none for a point without a label.
        taken: where no label may stand.

    Returns:
        None for a point without a label, and for a label that would leave the plot or cover a more important one.
    """
    points = list(zip(xs, ys, strict=True))
    covered = [*taken]
    found: list[str | None] = []
    for point, lines in zip(points, labels, strict=True):
        boxes = {side: _box(point, lines, side) for side in _SIDES} if lines else {}
        free = {side: box for side, box in boxes.items() if box[0] >= 0 and box[1] <= 1 and not _meets(box, covered)}
        side = min(free, key=lambda side: sum(_covers(free[side], other) for other in points), default=None)
        covered += [free[side]] if side else []
        found.append(side)
    return found


def note_box(x: float, y: float, text: str) -> Box:
    """Return where a note of one line stands: to the left of the right edge ``x``, or from 0 on, and below ``y``."""
    width = _CHARACTER * len(text)
    left = max(0.0, x - width)
    return left, left + width, y - _LINE, y


def _box(point: tuple[float, float], lines: Sequence[str], side: str) -> Box:
    across, up = _SIDES[side]
    width, height = _CHARACTER * max(map(len, lines)), _LINE * len(lines)
    x, y = point[0] + across * (_GAP_X + width / 2), point[1] + up * (_GAP_Y + height / 2)
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2


def _meets(box: Box, others: Sequence[Box]) -> bool:
    left, right, low, high = box
    return any(left < other[1] and other[0] < right and low < other[3] and other[2] < high for other in others)


def _covers(box: Box, point: tuple[float, float]) -> bool:
    left, right, low, high = box
    return left - _MARKER_X < point[0] < right + _MARKER_X and low - _MARKER_Y < point[1] < high + _MARKER_Y
