"""Reproducible pictures of shapes, for image classifiers without image files."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

#: Red, green and blue from 0 to 255, shape ``(height, width, 3)``.
Pixels = npt.NDArray[np.uint8]
_Plane = npt.NDArray[np.float64]

#: Height and width.
SIDE = 32
#: Shape -> test whether points are inside, given their distances from its centre for a shape of size 1.
_INSIDE: Mapping[str, Callable[[_Plane, _Plane], npt.NDArray[np.bool_]]] = {
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1.0),
    "disc": lambda x, y: x**2 + y**2 < 1.0,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.8) < 0.2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "stripes": lambda x, y: (np.maximum(abs(x), abs(y)) < 1.0) & (np.floor(2.5 * (y + 1.0)) % 2 == 0),
    "triangle": lambda x, y: (abs(x) < 0.5 * (y + 1.0)) & (y < 0.9),
}
SHAPES = tuple(_INSIDE)


def draw(count: int, seed: int) -> list[tuple[Pixels, str]]:
    """Return ``count`` pictures with the names of their alternating shapes; colours, positions and noise are random."""
    # The legacy generator, because numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    found = []
    for number in range(count):
        shape, size = SHAPES[number % len(SHAPES)], random.uniform(6.0, 12.0)
        middle = random.uniform(size, SIDE - 1 - size, size=2)
        inside = _INSIDE[shape]((x - middle[0]) / size, (y - middle[1]) / size)
        paper, ink = random.uniform(0.0, 120.0, size=3), random.uniform(135.0, 255.0, size=3)
        picture = np.where(inside[..., None], ink, paper) + random.normal(0.0, 20.0, size=(SIDE, SIDE, 3))
        found.append((picture.clip(0.0, 255.0).astype(np.uint8), shape))
    return found
