"""Labels in figures: shortens names, and positions them so that they cover as little as possible."""

from collections.abc import Sequence

#: Size of a name, and the offset of its centre for each side of a point, in shares of the plot.
_WIDTH, _HEIGHT = 0.12, 0.06
_SIDES = {
    "top center": (0.0, 0.06),
    "bottom center": (0.0, -0.06),
    "middle right": (0.08, 0.0),
    "middle left": (-0.08, 0.0),
}


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


def sides(xs: Sequence[float], ys: Sequence[float], named: Sequence[bool]) -> list[str]:
    """Return Plotly's ``textposition`` for each named point: the side on which its name covers the fewest points.

    Args:
        xs: positions from 0 at the left edge of the plot to 1 at the right.
        ys: positions from 0 at the bottom to 1 at the top.
        named: whether each point has a name.
    """
    points = list(zip(xs, ys, strict=True))
    return [
        min(_SIDES, key=lambda side: _covered(point, side, points))
        for point, has_name in zip(points, named, strict=True)
        if has_name
    ]


def _covered(point: tuple[float, float], side: str, points: Sequence[tuple[float, float]]) -> int:
    """Return how many points a name on ``side`` covers; more than the number of points if it leaves the plot."""
    x, y = point[0] + _SIDES[side][0], point[1] + _SIDES[side][1]
    if not _WIDTH / 2 <= x <= 1 - _WIDTH / 2:
        return len(points) + 1
    return sum(abs(other_x - x) < _WIDTH / 2 and abs(other_y - y) < _HEIGHT / 2 for other_x, other_y in points)
