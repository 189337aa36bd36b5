"""The native map file: a quantization map with its ranges, promised figures and provenance, as JSON."""

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from autotune.errors import ConflictError
from autotune.job_spec import JobSpec
from autotune.store.records import JobRecord, TrialRecord
from search_spaces.errors import MapError
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.setup import CalibrationSettings, MeasurementSettings


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MappedLayer(_Part):
    """One layer: what it is, and what it takes."""

    kind: LayerKind
    weight_shape: tuple[int, ...]
    choice: str
    #: Calibrated range of the input, for static choices only.
    input_range: tuple[float, float] | None = None


class PromisedFigure(_Part):
    """A figure measured during the search, with its 95 % confidence interval if it was sampled."""

    value: float
    low: float | None = None
    high: float | None = None


class Provenance(_Part):
    """Where the map comes from."""

    job: str
    job_name: str
    trial: int
    measured_at: datetime
    seed: int
    calibration: CalibrationSettings
    #: Samples the ranges were calibrated on.
    calibration_samples: int
    environment: dict[str, Any]


class MapFile(_Part):
    """Everything needed to rebuild a quantized model and to check what was promised of it."""

    schema_: Literal["autotune.map/v1"] = Field(default="autotune.map/v1", alias="schema")
    task: str
    task_parameters: dict[str, Any]
    backend: str
    #: sha256 of the full-precision model's state dict; see ``workers.fingerprint``.
    model_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    #: Layer name -> layer, in execution order.
    layers: dict[str, MappedLayer]
    measurement: MeasurementSettings
    promised: dict[str, PromisedFigure]
    provenance: Provenance

    def quantization_map(self) -> QuantizationMap:
        """Return the map with its ranges.

        Raises:
            ChoiceError: if a choice is unknown.
            MapError: if a static layer has no range.
        """
        return QuantizationMap.from_names({name: layer.choice for name, layer in self.layers.items()}, self.ranges())

    def ranges(self) -> dict[str, ActivationRange]:
        """Return layer name -> calibrated range of the layers that have one."""
        return {
            name: ActivationRange(low=layer.input_range[0], high=layer.input_range[1])
            for name, layer in self.layers.items()
            if layer.input_range is not None
        }


def map_document(job: JobRecord, trial: TrialRecord) -> dict[str, Any]:
    """Return the native map of a measured trial as JSON-ready data.

    Raises:
        ConflictError: if the job has no model description, or the trial failed.
    """
    if job.description is None or not trial.figures:
        raise ConflictError(f"trial {trial.number} of job {job.id} was never measured; pick one that was")
    spec = JobSpec.parse(job.spec)
    quantization = QuantizationMap.from_names(trial.choices, job.description.calibration.ranges)
    file = MapFile(
        task=spec.task.name,
        task_parameters=spec.task.parameters,
        backend=job.description.environment.backend,
        model_fingerprint=job.description.fingerprint,
        layers={layer.name: _mapped(layer, quantization) for layer in job.description.layers},
        measurement=spec.worker_setup().measurement,
        promised={
            name: PromisedFigure(value=figure.value, low=figure.low, high=figure.high)
            for name, figure in trial.figures.items()
        },
        provenance=Provenance(
            job=job.id,
            job_name=job.name,
            trial=trial.number,
            measured_at=trial.finished_at,
            seed=spec.search.seed,
            calibration=spec.worker_setup().calibration,
            calibration_samples=job.description.calibration.samples,
            environment=dict(trial.environment),
        ),
    )
    return file.model_dump(mode="json", by_alias=True)


def dump(document: Mapping[str, Any]) -> str:
    """Return the text of a map file; equal documents give equal text."""
    return json.dumps(document, indent=2) + "\n"


def write(document: Mapping[str, Any], path: str | Path) -> None:
    """Write a map file whole or not at all.

    Raises:
        MapError: if the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(dump(document))
        Path(staged).chmod(0o644)
        Path(staged).replace(path)
    except OSError as error:
        raise MapError(f"cannot write the map to {str(path)!r}: {error.strerror}") from None


def read(path: str | Path) -> MapFile:
    """Return the map in the file ``path``.

    Raises:
        MapError: if the file cannot be read or is not a map of this version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MapError(f"cannot read the map {str(path)!r}: {error}") from None
    try:
        return MapFile.model_validate_json(text)
    except pydantic.ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        raise MapError(f"{str(path)!r} is not a quantization map:\n" + "\n".join(lines)) from None


def _mapped(layer: Layer, quantization: QuantizationMap) -> MappedLayer:
    choice = quantization.choices[layer.name]
    calibrated = quantization.ranges.get(layer.name) if choice.needs_calibration else None
    return MappedLayer(
        kind=layer.kind,
        weight_shape=layer.weight_shape,
        choice=choice.name,
        input_range=(calibrated.low, calibrated.high) if calibrated else None,
    )
