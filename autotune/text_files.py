"""Files that are written whole or not at all."""

import tempfile
from pathlib import Path

from search_spaces.errors import MapError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        MapError: if the file cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        MapError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            staged = Path(folder, path.name)
            staged.write_bytes(content)
            staged.replace(path)
    except OSError as error:
        raise MapError(f"cannot write {str(path)!r}: {error.strerror}") from None
