"""Photographs that packages ship, cut into random crops; each photograph belongs to one split."""

import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from workers.measurement import Split

#: Height and width of a crop.
SIDE = 224
CALIBRATION = "calibration"
#: Split -> its photographs, and how many crops of them are made.
PHOTOGRAPHS: Mapping[str, tuple[tuple[str, ...], int]] = {
    CALIBRATION: (
        ("coffee.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "hubble_deep_field.jpg", "cell.png"),
        60,
    ),
    Split.EVALUATION: (("chelsea.png", "china.jpg", "retina.jpg", "coins.png", "grass.png", "moon.png"), 200),
    Split.HELD_OUT: (("astronaut.png", "flower.jpg", "ihc.png", "camera.png", "gravel.png", "clock_motion.png"), 200),
}
#: Smallest side of a crop, relative to the shorter side of the photograph.
_SMALLEST = 0.4


def names() -> list[str]:
    """Return the names of all photographs."""
    return [name for some, _ in PHOTOGRAPHS.values() for name in some]


def write(photographs: Mapping[str, Path], folder: Path) -> None:
    """Write the crops of all splits as ``folder/SPLIT/NUMBER.png``, unless they are there; the same ones each time.

    Args:
        photographs: name -> file, at least for the names in ``PHOTOGRAPHS``.
        folder: is created.
    """
    for split, (some, count) in PHOTOGRAPHS.items():
        target = folder / split
        if len(list(target.glob("*.png"))) == count:
            continue
        target.mkdir(parents=True, exist_ok=True)
        opened = [Image.open(photographs[name]).convert("RGB") for name in some]
        numbers = random.Random(split)
        for number in range(count):
            crop(opened[number % len(opened)], numbers).save(target / f"{number:03}.png")


def crop(photograph: Image.Image, numbers: random.Random) -> Image.Image:
    """Return a random square of a photograph, possibly mirrored, at ``SIDE`` x ``SIDE``."""
    side = round(min(photograph.size) * numbers.uniform(_SMALLEST, 1.0))
    left, top = (numbers.randint(0, length - side) for length in photograph.size)
    square = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if numbers.random() < 0.5 else square
