"""Verifies a map file: rebuilds the quantized model from the file alone and measures it again."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.maps.learned import learned_layers
from autotune.maps.map_file import MapFile
from autotune.metrics.catalog import METRICS, Kind, Metric, metric_of, percentiles_of, ratio_of
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
#: Largest relative difference between full precision's medians, then and now, of latency ratios that may be compared.
_SAME_SPEED = 0.15


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
    #: Of a latency ratio: full precision's median in ms when the map was made, and beside this measurement.
    full_precision_ms: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether the measured figure is within the tolerance."""
        return abs(self.difference) <= self.tolerance

    @property
    def inconclusive(self) -> bool:
        """Whether the figure does not hold, on a machine whose speed is not the one of the promise."""
        if self.holds or self.full_precision_ms is None:
            return False
        return is_another_speed(*self.full_precision_ms)

    @property
    def verdict(self) -> str:
        """Whether the figure holds, in a word."""
        return "holds" if self.holds else "unclear" if self.inconclusive else "BROKEN"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification:
    """The result of verifying a map."""

    checks: tuple[Check, ...]
    #: Accuracy of the map and of full precision on data that the search never used; None if it is missing.
    held_out: tuple[float, float] | None
    #: Why it is missing; None if it is not.
    held_out_missing: str | None = None
    #: Hardware on which the map was measured.
    hardware: str = ""

    @property
    def holds(self) -> bool:
        """Whether every promised figure holds."""
        return all(check.holds for check in self.checks)

    @property
    def inconclusive(self) -> bool:
        """Whether some promise does not hold, but only those of latency, while the machine had another speed."""
        return not self.holds and not _broken(self.checks)

    @property
    def verdict(self) -> str:
        """A sentence that says whether the promises hold, or why that is not known."""
        if not self.inconclusive:
            return f"The promised figures {'hold' if self.holds else 'do not hold'}."
        medians = (check.full_precision_ms for check in self.checks if check.inconclusive)
        return inconclusive_text(*(next(medians) or (0.0, 0.0)), self.hardware)

    def __repr__(self) -> str:
        shown = ((METRICS[check.metric], check) for check in self.checks)
        lines = [
            f"  {metric.label}: {metric.text_with_unit(check.measured.value)}, "
            f"promised {metric.text_with_unit(check.promised.value)}, {check.verdict}"
            for metric, check in shown
        ]
        return "\n".join([self.verdict, *lines])


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
    processes can shift a whole series by that much for a minute, in favour of one of the two models. A ratio that does
    not hold is inconclusive if full precision's own median was more than 15 % off in every try. ``report`` gets every
    step.

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
    if file.recovery is not None:
        evaluator.learn(file.quantization_map(), learned_layers(file), file.backend)
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
    checks = min(tries, key=_rank)
    return Verification(
        checks=checks,
        held_out=quality.held_out_accuracies(choices),
        held_out_missing=quality.held_out_missing,
        hardware=file.hardware,
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
            full_precision_ms=_full_precision_ms(file, measurement, METRICS[name]),
        )
        for name, allowed in tolerances.items()
        if name in file.promised
    )


def _full_precision_ms(file: MapFile, measurement: Measurement, metric: Metric) -> tuple[float, float] | None:
    """Return full precision's median, promised and measured, in ms; None if ``metric`` is no ratio to it."""
    median = percentiles_of(metric.workload)[50].name
    if metric.kind is not Kind.LATENCY_RATIO or median not in file.promised:
        return None
    samples = next(samples for samples in measurement.latency if samples.workload is metric.workload)
    promised_ms = file.promised[median].value / file.promised[metric.name].value
    return promised_ms, float(np.median(samples.reference_ms))


def _rank(checks: Sequence[Check]) -> tuple[bool, bool, float]:
    """Return a key that is least for the try that decides: one that holds, one that counts, the nearest one."""
    distance = max((abs(ratio.difference) for ratio in _ratios(checks)), default=0.0)
    return not all(check.holds for check in checks), not _broken(checks), distance


def _broken(checks: Sequence[Check]) -> bool:
    """Return whether a promise does not hold on a machine of the promised speed."""
    return any(not check.holds and not check.inconclusive for check in checks)


def is_another_speed(then_ms: float, now_ms: float) -> bool:
    """Return whether full precision's medians are so far apart that latency ratios beside them need not be equal."""
    return abs(_relative(now_ms, then_ms)) > _SAME_SPEED


def inconclusive_text(then_ms: float, now_ms: float, hardware: str) -> str:
    """Return a sentence about a machine that ran full precision at another speed than ``hardware`` did."""
    return (
        f"Inconclusive: full precision takes {now_ms:.3g} ms here, and took {then_ms:.3g} ms when the map was made, so "
        f"the latency says nothing against the map. Verify again on a quiet machine with {hardware}."
    )


def _ratios(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if METRICS[check.metric].kind is Kind.LATENCY_RATIO]


def _relative(measured: float, promised: float) -> float:
    return (measured - promised) / (abs(promised) or 1.0)
