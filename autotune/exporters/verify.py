"""Check an export against its map's promises by running it in its own runtime and its own process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from autotune.errors import ExportError
from autotune.exporters import build_exporter, runtime
from autotune.exporters.export import read_source
from autotune.exporters.manifest import MANIFEST, MAP, Manifest
from autotune.exporters.runtime import CANDIDATE_MS, JUDGED, REFERENCE_MS
from autotune.maps import map_file
from autotune.maps.map_file import MapFile
from autotune.maps.verify import inconclusive_text, is_another_speed
from autotune.metrics.from_measurement import MIB
from autotune.text_files import write_text
from workers import quality
from workers.device.threads import same_threads
from workers.measurement import LatencySamples
from workers.progress import Report, Stage, Step, silent
from workers.task import Split, Task
from workers.tasks.live import LIVE
from workers.timing.estimates import latency_ratio, percentile

#: Name of the check of full precision's latency on the map's backend.
_FULL_PRECISION = "full_precision_p50_ms"
#: Name of the report in the export's folder.
REPORT = "verification.json"
#: Largest allowed loss of accuracy, relative to the promised one.
_ACCURACY = 0.01
#: Allowed divergence between two roundings, as a multiple of our own from full precision: 2 if they are equally fine.
_APART = 2.0
#: The same for formats whose int4 groups lack zero points: a quarter more, because they are coarser than ours.
_APART_COARSER = {"compressed-tensors": 2.5}
#: Formats that hold what the backends of the same name measured.
_MEASURED = ("onnxruntime", "openvino")
#: Divergence that differences in floating-point sums alone may cause.
_LEAST_DIVERGENCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCheck:
    """One figure of an export."""

    name: str
    #: Promised value of the map; None if it promises none.
    expected: float | None
    measured: float
    #: Largest allowed value, or smallest for accuracy; None if the figure is only reported.
    limit: float | None
    holds: bool = True
    #: Whether it does not hold on a machine whose speed is not the one of the promise.
    inconclusive: bool = False

    @property
    def verdict(self) -> str:
        """Whether the figure holds, in a word; empty if it has no limit."""
        return "" if self.limit is None else "holds" if self.holds else "unclear" if self.inconclusive else "BROKEN"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExportVerification:
    """Result of verifying an export."""

    format: str
    rounding: str
    #: Library -> version that the export ran with.
    libraries: Mapping[str, str]
    #: Why latencies were not measured; None if they were.
    untimed: str | None
    checks: tuple[ExportCheck, ...]
    #: Hardware on which the map was measured.
    hardware: str = ""

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def inconclusive(self) -> bool:
        """Whether only the latency does not hold, while the machine had another speed than the map promises."""
        return not self.holds and all(check.holds or check.inconclusive for check in self.checks)

    @property
    def verdict(self) -> str:
        """A sentence that says whether the promises hold, or why that is not known."""
        if not self.inconclusive:
            return f"The export {'holds' if self.holds else 'does not hold'} what its map promises."
        full = next(check for check in self.checks if check.name == _FULL_PRECISION)
        return inconclusive_text(full.expected or 0.0, full.measured, self.hardware)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "schema": "autotune.verification/v1",
            "holds": self.holds,
            "inconclusive": self.inconclusive,
            **asdict(self),
        }

    def write(self, folder: Path) -> None:
        """Write the report into the folder of the export.

        Raises:
            MapError: if the file cannot be written.
        """
        write_text(folder / REPORT, json.dumps(self.document(), indent=2) + "\n")

    def __repr__(self) -> str:
        lines = [self.verdict]
        for check in self.checks:
            expected = "" if check.expected is None else f", expected {check.expected:.4g}"
            limit = "" if check.limit is None else f", limit {check.limit:.4g}, {check.verdict}"
            lines.append(f"  {check.name.replace('_', ' ')}: {check.measured:.4g}{expected}{limit}")
        return "\n".join(lines)


def verify_export(
    folder: Path,
    *,
    repeats: int = 300,
    tolerance: float = 0.05,
    task_file: str | None = None,
    report: Report = silent,
) -> ExportVerification:
    """Check the export in ``folder`` against the promises of its map.

    If both the format and the map's backend are ONNX Runtime, or both OpenVINO, the outputs must agree. Otherwise they
    may differ as much as two roundings as fine as the map's own: their divergence is at most twice that of our backend
    from full precision, or 2.5 times that if the format rounds int4 weights again. Accuracy may be up to 1 % below the
    promised one. The latency ratio to full precision on the map's own backend may be up to ``tolerance`` above the
    promised one. The size is only reported. ``report`` gets every step. The export runs in a fresh process, but for
    a live model in this one, which alone has the model's data.

    Raises:
        ExportError: if the folder is not an export, was changed, or its runtime cannot load it.
        TaskError: if the map's task is unknown.
    """
    manifest, file = Manifest.read(folder), map_file.read(folder / MAP)
    exporter = build_exporter(manifest.format)
    promised = {name: figure.value for name, figure in file.promised.items()}
    slowest = promised.get("latency_ratio", float("inf")) * (1.0 + tolerance)
    source = read_source(file, task_file=task_file)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "result.safetensors")
        run = _run_here if file.task == LIVE else _run
        run(folder, result, repeats=repeats, slowest=slowest, task_file=task_file, report=report)
        found = load_file(result)
    full = quality.outputs(source.task, source.full_precision(), Split.EVALUATION, report)
    task, deployed = source.deployed()
    deployed.apply(file.quantization_map().names)
    ours = quality.outputs(task, deployed.model, Split.EVALUATION, report)
    untimed = source.untimed(exporter)
    checks = [
        *_output_checks(source.task, found[Split.EVALUATION], ours, full, _apart(manifest.format, file.backend)),
        *_accuracy_checks(source.task, found, promised),
        *(_latency_checks(file, found, promised, slowest) if untimed is None else ()),
        _size(manifest, file, promised),
    ]
    return ExportVerification(
        format=manifest.format,
        rounding=manifest.rounding,
        libraries={name: metadata.version(name) for name in exporter.libraries},
        untimed=untimed,
        checks=tuple(checks),
        hardware=file.hardware,
    )


def _run_here(
    folder: Path, result: Path, *, repeats: int, slowest: float, task_file: str | None, report: Report
) -> None:
    """Run the export in this process."""
    with same_threads():
        runtime.run(folder, result, repeats=repeats, slowest=slowest, task_file=task_file, report=report)


def _run(folder: Path, result: Path, *, repeats: int, slowest: float, task_file: str | None, report: Report) -> None:
    """Run the export in a new process, which writes its outputs and latencies to ``result``."""
    # -P: modules in the current folder must not shadow installed ones.
    command = [sys.executable, "-P", "-m", "autotune.exporters.runtime", str(folder.resolve()), str(result)]
    command += ["--repeats", str(repeats), "--slowest", str(slowest)]
    command += [] if task_file is None else ["--task-file", task_file]
    # Errors go to a file, because a full pipe that nobody reads would stop the process.
    with result.with_name("errors.txt").open("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout or ():
                step = json.loads(line)
                report(Step(**step | {"stage": Stage(step["stage"])}))
        if process.returncode != 0:
            errors.seek(0)
            last = (errors.read().strip() or f"exit status {process.returncode}").splitlines()[-1]
            raise ExportError(f"the export in {str(folder)!r} does not run in its runtime: {last}")


def _apart(format_name: str, backend: str) -> float:
    """Return the allowed divergence from our backend, as a multiple of its own from full precision."""
    # These backends measured this very graph. The torchao backend uses other tensors, kernels and devices.
    if format_name == backend and format_name in _MEASURED:
        return 0.0
    return _APART_COARSER.get(format_name, _APART)


def _output_checks(
    task: Task, actual: torch.Tensor, ours: torch.Tensor, full: torch.Tensor, most_apart: float
) -> tuple[ExportCheck, ...]:
    apart = float(quality.divergence(actual, ours, task.output_kind).mean())
    own = float(quality.divergence(ours, full, task.output_kind).mean())
    limit = max(most_apart * own, _LEAST_DIVERGENCE)
    error = float((actual - ours).norm() / ours.norm())
    return (
        ExportCheck(name="divergence_from_backend", expected=None, measured=apart, limit=limit, holds=apart <= limit),
        ExportCheck(name="relative_output_difference", expected=None, measured=error, limit=None),
    )


def _accuracy_checks(
    task: Task, found: Mapping[str, torch.Tensor], promised: Mapping[str, float]
) -> tuple[ExportCheck, ...]:
    def accuracy(split: Split) -> float:
        return quality.number(task.accuracy(found.get(JUDGED + split, found[split]), split))

    expected = promised.get("held_out_accuracy")
    held_out = [accuracy(Split.HELD_OUT)] if Split.HELD_OUT in found else []
    kept = {"accuracy": Split.EVALUATION, "shifted_accuracy": Split.SHIFTED}
    return (
        *(_accuracy_check(name, promised[name], accuracy(split)) for name, split in kept.items() if name in promised),
        *(ExportCheck(name="held_out_accuracy", expected=expected, measured=each, limit=None) for each in held_out),
    )


def _accuracy_check(name: str, expected: float, measured: float) -> ExportCheck:
    limit = expected - _ACCURACY * abs(expected)
    return ExportCheck(name=name, expected=expected, measured=measured, limit=limit, holds=measured >= limit)


def _latency_checks(
    file: MapFile, found: Mapping[str, torch.Tensor], promised: Mapping[str, float], slowest: float
) -> tuple[ExportCheck, ...]:
    samples = LatencySamples(
        batch_size=file.measurement.batch_sizes[0],
        candidate_ms=found[CANDIDATE_MS].numpy(),
        reference_ms=found[REFERENCE_MS].numpy(),
    )
    ratio, full_ms = latency_ratio(samples).value, float(np.median(samples.reference_ms))
    expected, median_ms = promised.get("latency_ratio"), promised.get("latency_p50_ms")
    then_ms = median_ms / expected if median_ms and expected else None
    return (
        ExportCheck(
            name="latency_ratio",
            expected=expected,
            measured=ratio,
            limit=slowest if expected is not None else None,
            holds=ratio <= slowest,
            inconclusive=ratio > slowest and then_ms is not None and is_another_speed(then_ms, full_ms),
        ),
        *(
            ExportCheck(
                name=f"latency_p{percent}_ms",
                expected=promised.get(f"latency_p{percent}_ms"),
                measured=percentile(samples.candidate_ms, percent).value,
                limit=None,
            )
            for percent in (50, 95)
        ),
        ExportCheck(name=_FULL_PRECISION, expected=then_ms, measured=full_ms, limit=None),
    )


def _size(manifest: Manifest, file: MapFile, promised: Mapping[str, float]) -> ExportCheck:
    beside = {MANIFEST, MAP, file.recovery.sidecar.file if file.recovery else MAP}
    size = sum(written.bytes for name, written in manifest.files.items() if name not in beside)
    return ExportCheck(name="size_mib", expected=promised.get("weight_memory_mib"), measured=size / MIB, limit=None)
