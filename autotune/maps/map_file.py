"""The native map file: a quantization map with its ranges, promised figures and provenance, as JSON.

A recovered map has its learned weights in another file beside it.
"""

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from autotune.errors import ConflictError, NotFoundError
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.text_files import write_bytes, write_text
from autotune.validation import describe
from search_spaces.choice import choice_named
from search_spaces.errors import AutotuneError, MapError
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import (
    ActivationRange,
    QuantizationMap,
    SecondMoments,
    Smoothing,
    without_means,
)
from workers.recovered import digest
from workers.setup import CalibrationSettings, MeasurementSettings
from workers.timing.estimates import Figure


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MappedSmoothing(_Part):
    """Factors of a layer's input channels, and the range of the input divided by them."""

    factors: tuple[float, ...]
    range: tuple[float, float]

    @classmethod
    def of(cls, calibrated: ActivationRange | None) -> Self | None:
        """Return the smoothing of a calibrated range; None if it has none."""
        found = calibrated.smoothing if calibrated else None
        return cls(factors=found.factors, range=(found.low, found.high)) if found else None


class MappedMoments(_Part):
    """Second moments of a layer's input; see ``SecondMoments``."""

    squares: tuple[float, ...]
    scales: tuple[float, ...]
    basis: str

    @classmethod
    def of(cls, calibrated: ActivationRange | None) -> Self | None:
        """Return the second moments of a calibrated range; None if it has none."""
        found = calibrated.moments if calibrated else None
        return cls(**dataclasses.asdict(found)) if found else None


class MappedLayer(_Part):
    """One layer: its shape, its choice and the data that the choice needs."""

    kind: LayerKind
    weight_shape: tuple[int, ...]
    choice: str
    #: Bits of int8 weights: 7 if they were made for a processor without VNNI.
    weight_bits: Literal[7, 8] = 8
    #: Input shapes of the latency measurement, for which the fastest kernels are chosen.
    latency_shapes: tuple[tuple[int, ...], ...] = ()
    #: Kernel that computed it; None if there is no choice of kernels.
    kernel: str | None = None
    #: Calibrated range of the input; only for choices that need calibration and layers with a corrected bias.
    input_range: tuple[float, float] | None = None
    #: Mean of each input channel, if the bias is corrected.
    input_means: tuple[float, ...] | None = None
    #: Only for choices that smooth the input.
    smoothing: MappedSmoothing | None = None
    #: Only for choices that use them to round weights.
    moments: MappedMoments | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        try:
            calibrated, choice = self.range(), choice_named(self.choice).with_weight_bits(self.weight_bits)
        except AutotuneError as error:
            raise ValueError(str(error)) from None
        if choice.needs_calibration and calibrated is None:
            raise ValueError(f"{choice.name} needs the calibrated input_range, but it has none")
        factors = len(self.smoothing.factors) if self.smoothing else "none"
        if choice.is_smooth and factors != self.weight_shape[-1]:
            raise ValueError(f"{choice.name} needs smoothing with {self.weight_shape[-1]} factors, but has {factors}")
        channels = len(self.moments.squares) if self.moments else "none"
        if choice.is_gptq and channels != self.weight_shape[-1]:
            raise ValueError(f"{choice.name} needs moments of {self.weight_shape[-1]} channels, but has {channels}")
        if self.input_means is not None and not self._fits(self.input_means):
            raise ValueError(
                f"input_means must contain one mean per input channel of a linear or convolutional layer with an "
                f"input_range, but got {len(self.input_means)} for a {self.kind} of shape {list(self.weight_shape)}"
            )
        return self

    def _fits(self, means: tuple[float, ...]) -> bool:
        if self.input_range is None or not self.kind.is_product:
            return False
        groups, rest = divmod(len(means), self.weight_shape[1])
        grouped = self.kind is not LayerKind.LINEAR and groups > 0 and self.weight_shape[0] % groups == 0
        return not rest and (groups == 1 or grouped)

    def range(self) -> ActivationRange | None:
        """Return the calibrated range of the input, or None if there is none."""
        if self.input_range is None:
            return None
        smoothing = None
        if self.smoothing is not None:
            low, high = self.smoothing.range
            smoothing = Smoothing(factors=self.smoothing.factors, low=low, high=high)
        moments = SecondMoments(**self.moments.model_dump()) if self.moments else None
        low, high = self.input_range
        return ActivationRange(low=low, high=high, smoothing=smoothing, moments=moments, means=self.input_means)


class Provenance(_Part):
    """The origin of the map: its job, trial, calibration and environment."""

    job: str
    job_name: str
    trial: int
    measured_at: datetime
    seed: int
    calibration: CalibrationSettings
    #: Number of calibration samples.
    calibration_samples: int
    environment: dict[str, Any]


class Sidecar(_Part):
    """A file beside the map."""

    #: Name of the file, in the folder of the map.
    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    #: Size of the file.
    bytes: int


class Validation(_Part):
    """What recovery gained, on calibration samples that nothing was learned from."""

    samples: int
    #: Mean divergence from full precision without the learned weights, and with them.
    before: float
    after: float


class MappedRecovery(_Part):
    """How weights of the map were learned; the weights are in the sidecar."""

    #: The trial whose map was recovered.
    parent: int
    method: str
    seconds: float
    #: Number of calibration samples that weights were learned from.
    samples: int
    validation: Validation
    #: Names of the layers with learned weights, in execution order.
    layers: tuple[str, ...]
    sidecar: Sidecar

    @classmethod
    def of(cls, trial: TrialRecord) -> Self | None:
        """Return the recovery of a trial; None if its map was not recovered."""
        report = trial.recovery
        if report is None or trial.parent is None:
            return None
        return cls(
            parent=trial.parent,
            method=report.method,
            seconds=report.seconds,
            samples=report.samples,
            validation=Validation(samples=report.validation_samples, before=report.before, after=report.after),
            layers=report.layers,
            sidecar=Sidecar(file=f"map-{report.sha256[:12]}.safetensors", sha256=report.sha256, bytes=report.nbytes),
        )


class MapFile(_Part):
    """Everything needed to rebuild a quantized model and to check its promised figures."""

    schema_: Literal["autotune.map/v1"] = Field(default="autotune.map/v1", alias="schema")
    task: str
    task_parameters: dict[str, Any]
    backend: str
    #: Backend whose full precision the promised latency ratios are relative to; None means ``backend``.
    reference_backend: str | None = None
    #: sha256 of the full-precision model's state dict; see ``workers.model.fingerprint``.
    model_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    #: Layer name -> layer, in execution order.
    layers: dict[str, MappedLayer]
    measurement: MeasurementSettings
    promised: dict[str, Figure]
    provenance: Provenance
    #: Only of recovered maps. Other files lack the key, because earlier versions read only keys that they know.
    recovery: Annotated[MappedRecovery | None, Field(exclude_if=lambda found: found is None)] = None
    _learned: bytes = PrivateAttr(default=b"")

    @model_validator(mode="after")
    def _can_have_learned(self) -> Self:
        for name in self.recovery.layers if self.recovery else ():
            if name not in self.layers:
                raise ValueError(f"the recovered layer {name!r} is not among the layers")
            layer = self.layers[name]
            if not layer.kind.is_product or not choice_named(layer.choice).has_integer_weights:
                raise ValueError(
                    f"a recovered layer must be linear or convolutional with integer weights, but {name!r} is "
                    f"{layer.kind} in {layer.choice}"
                )
            if layer.input_means is not None:
                raise ValueError(f"the bias of the recovered layer {name!r} is learned; it must have no input_means")
        return self

    @property
    def learned(self) -> bytes:
        """Content of the sidecar; empty if the map was not recovered.

        Raises:
            MapError: if the map was recovered, but its learned weights are not here.
        """
        if self.recovery is not None and not self._learned:
            raise MapError(
                f"this map was recovered, and its learned weights are in {self.recovery.sidecar.file!r}; read them "
                "with it, or export it again"
            )
        return self._learned

    def with_learned(self, content: bytes) -> Self:
        """Return the map with the content of its sidecar; a map that was not recovered has none.

        Raises:
            MapError: if the content is not that of this map.
        """
        if self.recovery is None:
            return self
        wanted, actual = self.recovery.sidecar, digest(content)
        if (len(content), actual) != (wanted.bytes, wanted.sha256):
            raise MapError(
                f"the learned weights of this map have {wanted.bytes} bytes and the sha256 {wanted.sha256}, but those "
                f"given have {len(content)} and {actual}; export the map again"
            )
        whole = self.model_copy()
        whole._learned = content
        return whole

    @property
    def reference(self) -> str:
        """Backend whose full precision the promised latency ratios are relative to."""
        return self.reference_backend or self.backend

    def quantization_map(self) -> QuantizationMap:
        """Return the quantization map with its ranges."""
        names = {name: layer.choice for name, layer in self.layers.items()}
        return QuantizationMap.from_names(names, self.ranges(), self.weight_bits())

    def weight_bits(self) -> dict[str, int]:
        """Return layer name -> bits of int8 weights in int8 products."""
        return {name: layer.weight_bits for name, layer in self.layers.items()}

    def kernels(self, kind: str) -> dict[str, dict[str, str]]:
        """Return layer name -> choice name -> measured kernel; empty for another ``kind`` of hardware.

        Kernels that are fast on one kind of hardware may be slow on another.
        """
        if kind != self.provenance.environment.get("kind"):
            return {}
        return {name: {layer.choice: layer.kernel} for name, layer in self.layers.items() if layer.kernel is not None}

    @property
    def hardware(self) -> str:
        """The hardware on which the map was measured, in words."""
        return str(self.provenance.environment.get("hardware", "the hardware that made the map"))

    def ranges(self) -> dict[str, ActivationRange]:
        """Return layer name -> calibrated range, for the layers that have one."""
        ranges = {name: layer.range() for name, layer in self.layers.items()}
        return {name: calibrated for name, calibrated in ranges.items() if calibrated is not None}


def map_document(job: JobRecord, trial: TrialRecord) -> dict[str, Any]:
    """Return the native map of a measured trial as JSON-ready data.

    Raises:
        ConflictError: if the job has no model description, or the trial failed.
    """
    if job.description is None or not trial.figures:
        raise ConflictError(f"trial {trial.number} of job {job.id} was never measured; pick another trial")
    spec = job.spec
    described, reference = job.description.on(trial.backend), job.description.environment.backend
    backend = described.environment.backend
    recovery = MappedRecovery.of(trial)
    # What was learned includes the bias.
    ranges = without_means(described.calibration.ranges, recovery.layers if recovery else ())
    quantization = QuantizationMap.from_names(trial.choices, ranges, described.weight_bits)
    file = MapFile(
        task=spec.task.name,
        task_parameters=spec.task.parameters,
        backend=backend,
        reference_backend=None if backend == reference else reference,
        model_fingerprint=job.description.fingerprint,
        layers={layer.name: _mapped(layer, quantization, described.kernels) for layer in described.layers},
        measurement=spec.worker_setup().measurement,
        promised=dict(trial.figures),
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
        recovery=recovery,
    )
    return file.model_dump(mode="json", by_alias=True)


def dump(document: Mapping[str, Any]) -> str:
    """Return the text of a map file; equal documents give equal text."""
    return json.dumps(document, indent=2) + "\n"


def write(document: Mapping[str, Any], path: str | Path, learned: bytes = b"") -> None:
    """Write a map file atomically, after its sidecar.

    Args:
        document: the map.
        path: its file.
        learned: learned weights of a recovered map; empty for other maps.

    Raises:
        MapError: if a file cannot be written, or the learned weights are not those of the map.
    """
    path, recovery = Path(path), document.get("recovery")
    if recovery is not None:
        file = MapFile.model_validate(document).with_learned(learned)
        write_bytes(path.with_name(recovery["sidecar"]["file"]), file.learned)
    write_text(path, dump(document))


def read(path: str | Path) -> MapFile:
    """Return the map in the file ``path``, with its sidecar if it has one.

    Raises:
        NotFoundError: if there is no such file, or no sidecar beside it.
        MapError: if the file cannot be read or is not a map file of this version; the message lists all errors. Also
            if the sidecar cannot be read or is not that of the map.
    """
    file = _parsed(Path(path))
    if file.recovery is None:
        return file
    sidecar = Path(path).with_name(file.recovery.sidecar.file)
    try:
        content = sidecar.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"the map {str(path)!r} was recovered, and its learned weights should be beside it, but there is no "
            f"{str(sidecar)!r}; copy both files, or export the map again"
        ) from None
    except OSError as error:
        raise MapError(f"cannot read the learned weights {str(sidecar)!r}: {error.strerror}") from None
    try:
        return file.with_learned(content)
    except MapError as error:
        raise MapError(f"{str(sidecar)!r} does not belong to {str(path)!r}: {error}") from None


def _parsed(path: Path) -> MapFile:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no map file {str(path)!r}; 'autotune export' writes one") from None
    except OSError as error:
        raise MapError(f"cannot read the map {str(path)!r}: {error.strerror}") from None
    try:
        return MapFile.model_validate_json(text)
    except pydantic.ValidationError as error:
        # If the version is wrong, the other errors mean nothing.
        errors = [item for item in error.errors() if item["loc"] == ("schema",)] or error.errors()
        lines = "\n".join(f"  {describe(MapFile, item, 'file')}" for item in errors)
        raise MapError(f"{str(path)!r} is not a quantization map; export it again:\n{lines}") from None


def _mapped(layer: Layer, quantization: QuantizationMap, kernels: Mapping[str, Mapping[str, str]]) -> MappedLayer:
    choice = quantization.choices[layer.name]
    known = quantization.ranges.get(layer.name)
    means = known.means if known is not None and choice.rounds_to_nearest else None
    calibrated = known if choice.needs_calibration or means is not None else None
    return MappedLayer(
        kind=layer.kind,
        weight_shape=layer.weight_shape,
        choice=choice.name,
        weight_bits=choice.weight_bits,
        latency_shapes=layer.latency_shapes,
        kernel=kernels.get(layer.name, {}).get(choice.name),
        input_range=(calibrated.low, calibrated.high) if calibrated else None,
        input_means=means,
        smoothing=MappedSmoothing.of(calibrated) if choice.is_smooth else None,
        moments=MappedMoments.of(calibrated) if choice.is_gptq else None,
    )
