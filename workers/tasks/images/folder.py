"""Folders of images, one folder for each class, as every framework reads them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.errors import TaskError
from workers.tasks.checks import contained, extra_packages
from workers.tasks.images.shape_images import Pixels

if TYPE_CHECKING:
    from PIL import Image

#: Endings of images, in lower case.
_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def image_paths(folder: str) -> list[tuple[Path, str | None]]:
    """Return all images of a folder, each with the name of the folder it is in; None if all are in none.

    They are in one fixed random order, so that a few of them are of all classes.

    Raises:
        TaskError: if some are in folders of one depth and others are not.
    """
    root = contained("images", folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS)
    depths = {len(path.relative_to(root).parts) for path in paths}
    if depths > {1} or depths - {1, 2}:
        raise TaskError(
            f"images must all be in folders of {folder!r} that are named by their classes, or all in itself if there "
            "are no labels; move those that are elsewhere"
        )
    # The legacy generator, because numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(paths))
    return [(paths[index], paths[index].parent.name if depths == {2} else None) for index in order]


def read_image(path: Path) -> Pixels:
    """Return one image of a folder.

    Raises:
        TaskError: if it cannot be read, or is outside the data folder.
    """
    with extra_packages():
        from PIL import Image
    try:
        with Image.open(contained("images", str(path.absolute()))) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise TaskError(f"cannot read the image {str(path)!r}: {error}; take it away") from None


def picture_of(pixels: Pixels) -> "Image.Image":
    """Return an image as libraries take it that prepare images by PIL."""
    with extra_packages():
        from PIL import Image
    return Image.fromarray(pixels)
