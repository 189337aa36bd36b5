"""Verifies a map file: rebuilds the quantized model from the file alone and measures it again."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.maps.map_file import MapFile
from autotune.metrics.catalog import METRICS, Kind, metric_of, ratio_of
from autotune.metrics.from_measurement import Reference, figures_of
from search_spaces.errors import MapError
from workers.backends import build_backend
from workers.candidate import Candidate
from workers.device.hardware import kind_of
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Measurement, Workload
from workers.progress import Report, silent
from workers.setup import KnownKernels, WorkerSetup
from workers.task import Split
from workers.timing.estimates import Figure

#: Most measurements of the latency, and the seconds between them.
_TRIES, _PAUSE_S = 5, 5.0

#: Accuracy on the same data must be equal, except for the order of floating-point sums.
ACCURACY_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A promised figure and the measured one."""

    metric: str
    promised: Figure
    measured: Figure
    #: Relative difference of the measured value from the promised one.
    difference: float
    #: Largest relative difference allowed.
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the measured figure is within the tolerance."""
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of verifying a map."""

    checks: tuple[Check, ...]
    #: Accuracy of the map and of full precision on data that the search never used; None if it is missing.
    held_out: tuple[float, float] | None
    #: Why it is missing; None if it is not.
    held_out_missing: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every promised figure holds."""
        return all(check.holds for check in self.checks)


def verify(
    file: MapFile,
    *,
    repeats: int = 300,
    tolerance: float = 0.05,
    task_file: str | None = None,
    report: Report = silent,
) -> Verification:
    """Rebuild the model from ``file``, measure it, and return the differences from the promised figures.

    Accuracy and weight bytes must be equal. The latency ratio to full precision is measured with ``repeats``
    interleaved passes. One of a few tries must be within ``tolerance`` of the promised ratio, because other
    processes can shift a whole series by that much for a minute, in favour of one of the two models. ``report`` gets
    every step.

    Raises:
        MapError: if the file's task now builds another model.
        TaskError: if the task is not registered.
    """
    threads = file.provenance.environment.get("threads", file.measurement.threads)
    settings = dataclasses.replace(file.measurement, repeats=max(repeats, file.measurement.repeats), threads=threads)
    known = KnownKernels(
        weight_bits=file.weight_bits(), kernels=file.kernels(kind_of(build_backend(file.backend).device))
    )
    evaluator = Evaluator(
        WorkerSetup(
            task=file.task,
            task_parameters=file.task_parameters,
            backend=file.reference,
            others={} if file.backend == file.reference else {file.backend: known},
            known=known if file.backend == file.reference else KnownKernels(),
            measurement=settings,
            ranges=file.ranges(),
            task_file=task_file,
        ),
        report,
    )
    if evaluator.description.fingerprint != file.model_fingerprint:
        raise MapError(
            f"task {file.task!r} now builds a model with other weights than the map was made for; run a new job"
        )
    choices, quality = file.quantization_map().names, evaluator.on(file.backend).quality
    shifted = "shifted_accuracy" in file.promised
    reference = Reference(
        accuracy=quality.reference_accuracy(Split.EVALUATION),
        latency_p50_ms=1.0,  # these only scale milliseconds, which are not checked
        workloads_p50_ms=dict.fromkeys(settings.workloads, 1.0),
        shifted_accuracy=quality.reference_accuracy(Split.SHIFTED) if shifted else None,
    )
    tries: list[tuple[Check, ...]] = []
    while not tries or (len(tries) < _TRIES and not all(check.holds for check in _ratios(tries[-1]))):
        if tries:
            time.sleep(_PAUSE_S)
        measurement = evaluator.measure(Candidate(number=0, choices=choices, backend=file.backend))
        tries.append(_checks(file, measurement, reference, tolerance))
    checks = min(tries, key=lambda checks: max((abs(ratio.difference) for ratio in _ratios(checks)), default=0.0))
    return Verification(
        checks=checks, held_out=quality.held_out_accuracies(choices), held_out_missing=quality.held_out_missing
    )


def _checks(file: MapFile, measurement: Measurement, reference: Reference, tolerance: float) -> tuple[Check, ...]:
    measured = figures_of(measurement, reference)
    tolerances = {
        **{metric_of(Kind.ACCURACY, split).name: ACCURACY_TOLERANCE for split in (Split.EVALUATION, Split.SHIFTED)},
        "weight_memory_mib": 0.0,
        **{ratio_of(workload).name: tolerance for workload in Workload},
    }
    return tuple(
        Check(
            metric=name,
            promised=file.promised[name],
            measured=measured[name],
            difference=_relative(measured[name].value, file.promised[name].value),
            tolerance=allowed,
        )
        for name, allowed in tolerances.items()
        if name in file.promised
    )


def _ratios(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if METRICS[check.metric].kind is Kind.LATENCY_RATIO]


def _relative(measured: float, promised: float) -> float:
    return (measured - promised) / (abs(promised) or 1.0)
