"""What is checked of a map: a scripted worker measures it, and only latencies get another try."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autotune.jobs.timestamps import now
from autotune.maps import verify as verification
from autotune.maps.map_file import MapFile, MappedLayer, Provenance
from autotune.maps.verify import Check, Verification, verify
from search_spaces.errors import MapError
from search_spaces.layer import LayerKind
from workers.candidate import Candidate
from workers.device.hardware import kind_of
from workers.measurement import Environment, LatencySamples, Measurement, Split, Workload
from workers.setup import CalibrationSettings, MeasurementSettings, WorkerSetup
from workers.timing.estimates import Figure

CHOICES = {"fc": "int8_weight_only"}
PROMISED = {"accuracy": 0.8, "weight_memory_mib": 2.0, "latency_ratio": 0.5, "latency_p50_ms": 2.0, "divergence": 0.1}


def file(promised: dict[str, float], **environment: Any) -> MapFile:
    layer = MappedLayer(kind=LayerKind.LINEAR, weight_shape=(4, 4), choice=CHOICES["fc"], weight_bits=7, kernel="fp32")
    provenance = Provenance(
        job="j", job_name="n", trial=1, measured_at=now(), seed=0, calibration=CalibrationSettings(),
        calibration_samples=1, environment=environment,
    )  # fmt: skip
    return MapFile(
        schema="autotune.map/v1", task="t", task_parameters={"p": 1}, backend="cpu", model_fingerprint="f" * 64,
        layers={"fc": layer}, measurement=MeasurementSettings(repeats=100, workloads=(Workload.DECODE,)),
        promised={name: Figure(value=value) for name, value in promised.items()}, provenance=provenance,
    )  # fmt: skip


def timed(workload: Workload, ratio: float, full_ms: float = 4.0) -> LatencySamples:
    return LatencySamples(
        workload=workload, batch_size=1, candidate_ms=np.full(20, full_ms * ratio), reference_ms=np.full(8, full_ms)
    )


def measured(
    ratio: float = 0.5, decode: float = 0.9, accuracy: float = 0.8, mib: int = 2, full_ms: float = 4.0
) -> Measurement:
    return Measurement(
        accuracy=accuracy, divergence=0.1, weight_bytes=mib << 20, working_bytes=8, seconds=1.0, forward_seconds=0.9,
        latency=(timed(Workload.FORWARD, ratio, full_ms), timed(Workload.DECODE, decode)), shifted=(0.35, 0.2),
        environment=Environment(hardware="cpu", backend="cpu", threads=2, load=0.1, versions={}),
    )  # fmt: skip


class Worker:
    """Measures as it is told, one measurement after the other, and keeps account of what it was asked."""

    def __init__(self, measurements: Sequence[Measurement], fingerprint: str = "f" * 64) -> None:
        self.measurements, self.setups, self.candidates = list(measurements), list[WorkerSetup](), list[Candidate]()
        self.pauses_s, self.splits, self.backends = list[float](), list[Split](), list[str]()
        self.description, self.quality = self, self  # one object plays all parts
        self.fingerprint, self.held_out_missing = fingerprint, None

    def on(self, backend: str) -> "Worker":
        self.backends.append(backend)
        return self

    def measure(self, candidate: Candidate) -> Measurement:
        self.candidates.append(candidate)
        return self.measurements[len(self.candidates) - 1]

    def reference_accuracy(self, split: Split) -> float:
        self.splits.append(split)
        return {Split.EVALUATION: 0.8, Split.SHIFTED: 0.4}[split]

    def held_out_accuracies(self, choices: dict[str, str]) -> tuple[float, float]:
        assert choices == CHOICES
        return 0.7, 0.75


def verified(
    monkeypatch: pytest.MonkeyPatch, worker: Worker, promised: dict[str, float] = PROMISED, **settings: Any
) -> Verification:
    def build(setup: WorkerSetup, report: object) -> Worker:
        worker.setups.append(setup)
        return worker

    monkeypatch.setattr(verification, "Evaluator", build)
    monkeypatch.setattr(verification.time, "sleep", worker.pauses_s.append)
    return verify(file(promised), **settings)


def test_a_map_that_is_what_was_promised_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured()])
    found = verified(monkeypatch, worker)
    assert found.holds
    assert {check.metric: (check.difference, check.tolerance) for check in found.checks} == {
        "accuracy": (0.0, 1e-6),
        "weight_memory_mib": (0.0, 0.0),
        "latency_ratio": (0.0, 0.05),
    }, "milliseconds of another moment, and divergences, are not compared"
    assert (found.held_out, found.held_out_missing) == ((0.7, 0.75), None)
    assert worker.pauses_s == []
    assert worker.splits == [Split.EVALUATION]


@pytest.mark.parametrize(
    ("wrong", "metric", "difference"),
    [
        (measured(accuracy=0.8 - 1e-5), "accuracy", -1e-5 / 0.8),
        (measured(accuracy=0.8 + 1e-5), "accuracy", 1e-5 / 0.8),
        (measured(mib=3), "weight_memory_mib", 0.5),
    ],
)
def test_accuracy_and_bytes_must_be_equal_and_get_no_other_try(
    monkeypatch: pytest.MonkeyPatch, wrong: Measurement, metric: str, difference: float
) -> None:
    worker = Worker([wrong])
    found = verified(monkeypatch, worker)
    assert [check.metric for check in found.checks if not check.holds] == [metric]
    assert next(check.difference for check in found.checks if check.metric == metric) == pytest.approx(difference)
    assert not found.holds
    assert len(worker.candidates) == 1


@pytest.mark.parametrize(
    ("ratios", "tolerance", "tries", "told"),
    [
        ([0.52], 0.05, 1, 0.52),  # 4 % too slow
        ([0.48], 0.05, 1, 0.48),
        ([0.6, 0.52], 0.05, 2, 0.52),
        ([0.6, 0.4, 0.56, 0.51], 0.05, 4, 0.51),
        ([0.6, 0.55, 0.7, 0.46, 0.62], 0.05, 5, 0.46),  # after five tries the nearest is told
        ([0.58], 0.2, 1, 0.58),
    ],
)
def test_a_ratio_holds_if_one_of_a_few_tries_is_within_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, ratios: list[float], tolerance: float, tries: int, told: float
) -> None:
    worker = Worker([measured(ratio) for ratio in ratios])
    found = verified(monkeypatch, worker, tolerance=tolerance)
    ratio = next(check for check in found.checks if check.metric == "latency_ratio")
    assert ratio.measured.value == pytest.approx(told)
    assert ratio.difference == pytest.approx((told - 0.5) / 0.5)
    assert found.holds == (abs(told - 0.5) <= tolerance * 0.5)
    assert len(worker.candidates) == tries
    assert worker.pauses_s == [5.0] * (tries - 1)


def test_all_ratios_must_hold_in_the_same_try(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured(0.5, 1.2), measured(0.7, 0.9), measured(0.51, 0.91)])
    found = verified(monkeypatch, worker, PROMISED | {"decode_latency_ratio": 0.9})
    assert found.holds
    assert len(worker.candidates) == 3


@pytest.mark.parametrize(
    ("tries", "holds", "inconclusive", "told"),
    [
        ([(0.6, 5.0)] * 5, False, True, 0.6),  # full precision, promised at 4 ms, was slower in every try
        ([(0.6, 3.0)] * 5, False, True, 0.6),  # or faster
        ([(0.6, 5.0)] * 4 + [(0.7, 4.0)], False, False, 0.7),  # the one try at the promised speed decides
        ([(0.6, 4.5)] * 5, False, False, 0.6),  # 12.5 % is the same speed
        ([(0.6, 5.0)] * 4 + [(0.5, 5.0)], True, False, 0.5),  # a ratio that holds, holds at any speed
    ],
)
def test_a_ratio_at_another_speed_of_the_machine_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, tries: list[tuple[float, float]], holds: bool, inconclusive: bool, told: float
) -> None:
    worker = Worker([measured(ratio, full_ms=full_ms) for ratio, full_ms in tries])
    found = verified(monkeypatch, worker)
    assert (found.holds, found.inconclusive) == (holds, inconclusive)
    ratio = next(check for check in found.checks if check.metric == "latency_ratio")
    assert ratio.measured.value == pytest.approx(told)
    assert ratio.full_precision_ms == (4.0, next(full_ms for number, full_ms in tries if number == told))
    assert len(worker.candidates) == 5
    assert repr(found).startswith(found.verdict)
    assert ("Inconclusive: full precision takes" in found.verdict) == inconclusive
    if inconclusive:
        assert f"{tries[0][1]:.3g} ms here, and took 4 ms when the map was made" in found.verdict
        assert "unclear" in repr(found)


def test_a_broken_accuracy_is_not_excused_by_the_speed_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified(monkeypatch, Worker([measured(0.6, accuracy=0.7, full_ms=5.0)] * 5))
    assert (found.holds, found.inconclusive) == (False, False)
    assert [check.metric for check in found.checks if check.inconclusive] == ["latency_ratio"]


def test_shifted_data_are_compared_if_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured()])
    found = verified(monkeypatch, worker, PROMISED | {"shifted_accuracy": 0.36})
    assert [check.metric for check in found.checks if not check.holds] == ["shifted_accuracy"]
    assert worker.splits == [Split.EVALUATION, Split.SHIFTED]


@pytest.mark.parametrize(("promised", "difference"), [(0.0, 0.25), (-2.0, -0.125), (2.0, 0.125)])
def test_differences_are_relative_but_for_a_promise_of_zero(
    monkeypatch: pytest.MonkeyPatch, promised: float, difference: float
) -> None:
    accuracy = promised + (0.25 if promised >= 0 else -0.25)
    found = verified(monkeypatch, Worker([measured(accuracy=accuracy)]), {"accuracy": promised})
    assert [check.difference for check in found.checks] == [pytest.approx(difference)]


def test_the_worker_gets_what_the_map_was_measured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured()] * 3)
    here = kind_of("cpu")
    monkeypatch.setattr(verification, "Evaluator", lambda setup, _: worker.setups.append(setup) or worker)
    for repeats, environment in ((300, {"threads": 3, "kind": here}), (50, {"kind": "another"})):
        verify(file(PROMISED, **environment), repeats=repeats, task_file="mine.py")
    same, other = worker.setups
    assert (same.task, same.task_parameters, same.backend, same.task_file) == ("t", {"p": 1}, "cpu", "mine.py")
    assert (same.known.weight_bits, same.ranges) == ({"fc": 7}, {})
    assert (same.measurement.repeats, same.measurement.threads) == (300, 3)
    assert same.known.kernels == {"fc": {"int8_weight_only": "fp32"}}
    assert other.known.kernels == {}, "kernels of another kind of hardware may be slow here"
    assert (other.measurement.repeats, other.measurement.threads) == (100, 0), "no fewer than when it was measured"
    assert [candidate.choices for candidate in worker.candidates] == [CHOICES] * 2


def test_a_map_of_another_backend_is_compared_with_the_reference_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured()])
    on_other = file(PROMISED).model_copy(update={"backend": "onnxruntime", "reference_backend": "cpu"})
    monkeypatch.setattr(verification, "Evaluator", lambda setup, _: worker.setups.append(setup) or worker)
    assert verify(on_other).holds
    (setup,) = worker.setups
    assert (setup.backend, list(setup.others)) == ("cpu", ["onnxruntime"])
    assert setup.others["onnxruntime"].weight_bits == {"fc": 7}
    assert setup.known.weight_bits is None
    assert (worker.backends, worker.candidates[0].backend) == (["onnxruntime"], "onnxruntime")


def test_a_task_that_builds_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([measured()], fingerprint="0" * 64)
    with pytest.raises(MapError, match="task 't' now builds a model with other weights than the map was made for"):
        verified(monkeypatch, worker)
    assert worker.candidates == []


def test_a_difference_of_exactly_the_tolerance_holds() -> None:
    def check(difference: float) -> Check:
        one = Figure(value=1.0)
        return Check(metric="latency_ratio", promised=one, measured=one, difference=difference, tolerance=0.25)

    assert [check(difference).holds for difference in (0.25, -0.25, 0.26, -0.26)] == [True, True, False, False]
    assert Verification(checks=(check(0.1), check(-0.2)), held_out=None).holds
    assert not Verification(checks=(check(0.1), check(-0.3)), held_out=None).holds
