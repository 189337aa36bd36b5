"""The file beside every export that says what it is: format, libraries, files with their hashes."""

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from autotune.errors import ExportError

#: Name of the manifest in an export's folder, and of the map it was made from.
MANIFEST, MAP = "export.json", "map.json"


class ExportedFile(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an export's folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["autotune.export/v1"] = Field(default="autotune.export/v1", alias="schema")
    format: str
    #: How far outputs may differ from the backend's that the map was measured with, and why.
    rounding: str
    #: Library -> version that wrote the files.
    libraries: dict[str, str]
    #: Path in the folder -> what was written there.
    files: dict[str, ExportedFile]
    #: What the format's loader needs to know.
    details: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the manifest of the export in ``folder``, whose files are as they were written.

        Raises:
            ExportError: if there is none, or a file is missing or was changed.
        """
        try:
            manifest = cls.model_validate_json(Path(folder, MANIFEST).read_bytes())
        except OSError as error:
            raise ExportError(f"{str(folder)!r} holds no export: cannot read {MANIFEST}: {error.strerror}") from None
        except pydantic.ValidationError:
            raise ExportError(f"{str(Path(folder, MANIFEST))!r} is no manifest of this version; export again") from None
        for name, written in manifest.files.items():
            path = Path(folder, name)
            if not path.is_file() or describe(path) != written:
                raise ExportError(f"{str(path)!r} is not what was exported: it is missing or was changed; export again")
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
