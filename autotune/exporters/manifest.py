"""The manifest in every export's folder: format, libraries, and files with their hashes."""

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from autotune.errors import ExportError

#: File names in an export's folder: the manifest, and the map that was exported.
MANIFEST, MAP = "export.json", "map.json"


class ExportedFile(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Content of an export's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["autotune.export/v1"] = Field(default="autotune.export/v1", alias="schema")
    format: str
    #: How and why outputs may differ from those of the backend that measured the map.
    rounding: str
    #: Library -> version that wrote the files.
    libraries: dict[str, str]
    #: Path in the folder -> size and hash of the file.
    files: dict[str, ExportedFile]
    #: Data for the format's loader.
    details: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the manifest of the export in ``folder``, after checking its files.

        Raises:
            ExportError: if there is no manifest, or a file is missing or was changed.
        """
        try:
            manifest = cls.model_validate_json(Path(folder, MANIFEST).read_bytes())
        except OSError as error:
            raise ExportError(f"{str(folder)!r} is not an export: cannot read {MANIFEST}: {error.strerror}") from None
        except pydantic.ValidationError:
            raise ExportError(
                f"{str(Path(folder, MANIFEST))!r} is not a manifest of this version; export again"
            ) from None
        for name, written in manifest.files.items():
            path = Path(folder, name)
            if not path.is_file() or describe(path) != written:
                raise ExportError(f"{str(path)!r} is missing or was changed after the export; export again")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        text = self.model_dump_json(by_alias=True, indent=2)
        Path(folder, MANIFEST).write_text(text + "\n", encoding="utf-8")


def describe(path: Path) -> ExportedFile:
    """Return the size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return ExportedFile(bytes=path.stat().st_size, sha256=digest.hexdigest())
