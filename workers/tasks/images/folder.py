"""Folders of images with one subfolder per class, the layout that every framework reads."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.errors import TaskError
from workers.tasks.checks import contained, extra_packages
from workers.tasks.images.shape_images import Pixels

if TYPE_CHECKING:
    from PIL import Image

#: Suffixes of image files, in lower case.
_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def image_paths(folder: str) -> list[tuple[Path, str | None]]:
    """Return all images of a folder, each with the name of its subfolder, or None if there are no subfolders.

    Images are in a fixed random order, so that even a few of them cover all classes.

    Raises:
        TaskError: if images are in nested subfolders, or only some are in subfolders.
    """
    root = contained("images", folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS)
    depths = {len(path.relative_to(root).parts) for path in paths}
    if depths > {1} or depths - {1, 2}:
        raise TaskError(
            f"images must all be in subfolders of {folder!r} named after their classes, or, without labels, all in the "
            "folder itself; move the other images"
        )
    # The legacy generator, because numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(paths))
    return [(paths[index], paths[index].parent.name if depths == {2} else None) for index in order]


def read_image(path: Path) -> Pixels:
    """Return one image of a folder.

    Raises:
        TaskError: if the image cannot be read, or is outside the data folder.
    """
    with extra_packages():
        from PIL import Image
    try:
        with Image.open(contained("images", str(path.absolute()))) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise TaskError(f"cannot read the image {str(path)!r}: {error}; remove or replace it") from None


def picture_of(pixels: Pixels) -> "Image.Image":
    """Return an image as a PIL image, for libraries that preprocess those."""
    with extra_packages():
        from PIL import Image
    return Image.fromarray(pixels)
