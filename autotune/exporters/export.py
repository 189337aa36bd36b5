"""Export a map: check it, build the model and write a folder atomically."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from autotune import exporters
from autotune.errors import ConflictError, ExportError
from autotune.exporters.base import Exporter, Source
from autotune.exporters.manifest import MANIFEST, MAP, Manifest, describe
from autotune.maps import map_file
from autotune.maps.learned import install_learned
from autotune.maps.map_file import MapFile
from search_spaces.discovery import discover
from workers.model.attention import unroll_as
from workers.model.full_precision import identified_model
from workers.task import example_batches, passes_over
from workers.tasks import build_task, load_task_file


def export(
    document: Mapping[str, Any],
    format_name: str,
    folder: Path,
    *,
    learned: bytes = b"",
    task_file: str | None = None,
) -> Manifest:
    """Write the map ``document`` in a format into ``folder`` and return its manifest.

    The export replaces an earlier one in the folder; if it fails, the folder stays unchanged.

    Args:
        document: the map.
        format_name: name of the format.
        folder: where to write it.
        learned: learned weights of a recovered map; empty for other maps.
        task_file: a Python file that registers the map's task.

    Raises:
        MapError: if the learned weights are not those of the map.
        ExportError: if the format cannot express the map or the model, or the folder cannot be written.
        ConflictError: if the folder contains anything but an export.
        TaskError: if the map's task is unknown.
    """
    exporter = exporters.build_exporter(format_name)
    file = MapFile.model_validate(document).with_learned(learned)
    _check_target(folder)
    source = read_source(file, task_file=task_file)
    exporters.check(exporter, source)
    if exporter.as_built and source.unrolled:
        source = source.as_built()
    with _staged(folder) as stage:
        details = exporter.write(source, stage)
        map_file.write(document, stage / MAP, learned)
        manifest = _manifest(exporter, stage, details)
        manifest.write(stage)
    return manifest


def read_source(file: MapFile, *, task_file: str | None = None) -> Source:
    """Return the map with the model that its task builds, and with the learned weights of a recovered map.

    Raises:
        MapError: if the learned weights are not here, or are for another model.
        ExportError: if the map was made for another model.
        TaskError: if the task is unknown.
    """
    if task_file is not None:
        load_task_file(task_file)
    task = build_task(file.task, file.task_parameters)
    model, identity = identified_model(task)
    if identity != file.model_fingerprint:
        raise ExportError(
            f"task {file.task!r} now builds a model with different weights from those of the map; run a new job"
        )
    unroll_as(model, file.layers)
    install_learned(model, file)
    first, *more = passes_over(task, example_batches(task))
    found = {layer.name: layer for layer in discover(model, first, more)}
    return Source(file=file, task=task, model=model, layers=tuple(found[name] for name in file.layers))


def _check_target(folder: Path) -> None:
    if folder.exists() and not Path(folder, MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{str(folder)!r} exists but is not an export; choose another folder with --output")


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` when the context ends without an error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            stage, old = Path(scratch, "new"), Path(scratch, "old")
            stage.mkdir()
            yield stage
            if folder.exists():
                folder.replace(old)
            stage.replace(folder)
    except OSError as error:
        raise ExportError(f"cannot write the export to {str(folder)!r}: {error.strerror or error}") from None


def _manifest(exporter: Exporter, stage: Path, details: Mapping[str, Any]) -> Manifest:
    written = sorted(path for path in stage.rglob("*") if path.is_file())
    return Manifest(
        format=exporter.name,
        rounding=exporter.rounding,
        libraries={name: metadata.version(name) for name in exporter.libraries},
        files={path.relative_to(stage).as_posix(): describe(path) for path in written},
        details=dict(details),
    )
