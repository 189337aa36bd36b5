"""The folder that a front is deployed from: a file that lists its maps, and the map files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from autotune.errors import NotFoundError
from autotune.jobs.records import JobRecord
from autotune.maps import map_file
from autotune.maps.map_file import MapFile
from autotune.serving.selection import Selection
from autotune.text_files import write_text
from autotune.validation import describe
from search_spaces.errors import MapError
from workers.timing.estimates import Figure

#: Name of the file that lists the maps.
BUNDLE = "bundle.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundledMap(_Part):
    """One map of a bundle."""

    #: Name of its file, in the folder of the bundle.
    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.json$")]
    #: Name of the map for people; None for a mix of choices.
    label: str | None
    #: Metric -> figure, as measured by the job.
    figures: dict[str, Figure]


class BundleFile(_Part):
    """What a bundle holds."""

    schema_: Literal["autotune.bundle/v1"] = Field(default="autotune.bundle/v1", alias="schema")
    #: Id and name of the job.
    job: str
    job_name: str
    #: sha256 of the full-precision model's state dict.
    model_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    #: Names of the metrics that the maps trade off, and the limits on them as the job file has them.
    objectives: tuple[str, ...]
    constraints: dict[str, Any]
    #: Number of the recommended map.
    recommended: int
    #: Number of its trial -> map, by ascending number.
    maps: dict[int, BundledMap]
    #: Most bytes that the weights of all maps take together.
    weight_bytes: int
    #: Number of a trial on the front -> why it is not in the bundle.
    left_out: dict[int, str]


def write(job: JobRecord, selection: Selection, learned: Mapping[int, bytes], folder: Path) -> BundleFile:
    """Write a bundle, the file that lists its maps last, and return what it holds.

    Args:
        job: the job.
        selection: its maps.
        learned: number of a recovered map -> its learned weights.
        folder: where to write.

    Raises:
        MapError: if a file cannot be written.
    """
    maps = {}
    for trial in selection.trials:
        file = f"map-{trial.number}.json"
        map_file.write(map_file.map_document(job, trial), folder / file, learned.get(trial.number, b""))
        maps[trial.number] = BundledMap(file=file, label=trial.label, figures=dict(trial.figures))
    assert job.description is not None
    bundle = BundleFile(
        job=job.id,
        job_name=job.name,
        model_fingerprint=job.description.fingerprint,
        objectives=job.spec.objectives,
        constraints=job.spec.constraints.model_dump(mode="json", exclude_unset=True),
        recommended=selection.recommended.number,
        maps=maps,
        weight_bytes=selection.weight_bytes,
        left_out=selection.left_out,
    )
    write_text(folder / BUNDLE, map_file.dump(bundle.model_dump(mode="json", by_alias=True)))
    return bundle


def read(folder: Path) -> tuple[BundleFile, dict[int, MapFile]]:
    """Return what a bundle holds, and its maps by number.

    Raises:
        NotFoundError: if there is no bundle in the folder, or one of its files is missing.
        MapError: if a file cannot be read, or a map belongs to another model.
    """
    path = folder / BUNDLE
    try:
        bundle = BundleFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"there is no bundle {str(path)!r}; 'autotune bundle' writes one") from None
    except OSError as error:
        raise MapError(f"cannot read the bundle {str(path)!r}: {error.strerror}") from None
    except pydantic.ValidationError as error:
        errors = [item for item in error.errors() if item["loc"] == ("schema",)] or error.errors()
        lines = "\n".join(f"  {describe(BundleFile, item, 'file')}" for item in errors)
        raise MapError(f"{str(path)!r} is not a bundle; write it again with 'autotune bundle':\n{lines}") from None
    if bundle.recommended not in bundle.maps:
        raise MapError(
            f"the recommended map must be among the maps of {str(path)!r}, but {bundle.recommended} is not; write the "
            "bundle again"
        )
    maps = {number: map_file.read(folder / each.file) for number, each in bundle.maps.items()}
    for number, file in maps.items():
        if file.model_fingerprint != bundle.model_fingerprint:
            raise MapError(
                f"the maps of a bundle are for one model, but {bundle.maps[number].file!r} is for another than "
                f"{str(path)!r}; write the bundle again"
            )
    return bundle, maps
