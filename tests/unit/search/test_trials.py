"""What is recorded of a map: that it was ruled out, failed, was given up, or was measured."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autotune.errors import ConflictError
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference
from autotune.search.trials import PlannedTrial, recovered_trial
from search_spaces.quantization_map import map_key
from workers.candidate import Candidate, Outcome
from workers.measurement import Environment, Failure, FailureCause, LatencySamples, Measurement, Workload
from workers.recovered import Recovered, RecoveryReport, RecoverySettings
from workers.timing.estimates import Figure

MIX, FULL = {"a": "bf16", "b": "fp32"}, {"a": "fp32", "b": "fp32"}
REFERENCE = Reference(accuracy=0.8, latency_p50_ms=10.0)
LIMITS = (
    Constraint(metric="accuracy", limit=0.5, at_most=False),
    Constraint(metric="latency_p50_ms", limit=4.0, at_most=True),
    Constraint(metric="peak_memory_mib", limit=9.0, at_most=True),
)
ENVIRONMENT = Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={"torch": "2"})


def planned(choices: Mapping[str, str] = MIX, kind: TrialKind = TrialKind.SEARCH) -> PlannedTrial:
    return PlannedTrial(job_id="j", number=7, kind=kind, label=None, choices=choices)


def samples(workload: Workload = Workload.FORWARD, *, gave_up: bool = False) -> LatencySamples:
    return LatencySamples(
        workload=workload, batch_size=1, candidate_ms=np.full(40, 5.0), reference_ms=np.full(8, 8.0), gave_up=gave_up
    )


def measured(**changes: Any) -> Measurement:
    return replace(
        Measurement(
            accuracy=0.6, divergence=0.01, weight_bytes=3 << 20, latency=(samples(),), working_bytes=1 << 20,
            seconds=2.0, forward_seconds=1.5, environment=ENVIRONMENT,
        ),
        **changes,
    )  # fmt: skip


def outcome(result: Measurement | Failure) -> Outcome:
    return Outcome(candidate=Candidate(number=7, choices=MIX), result=result, attempts=2, worker="w")


def test_a_measured_map_is_complete_with_its_violations() -> None:
    found = planned().finished(outcome(measured()), REFERENCE, LIMITS, {"generation": 3})
    assert (found.job_id, found.number, found.kind, found.state) == ("j", 7, TrialKind.SEARCH, TrialState.COMPLETE)
    assert (found.choices, found.key, found.sampler_state) == (MIX, map_key(MIX), {"generation": 3})
    assert (found.attempts, found.worker, found.seconds, found.forward_seconds) == (2, "w", 2.0, 1.5)
    assert (found.failure, found.message) == (None, None)
    assert (found.environment["hardware"], found.environment["versions"]) == ("cpu", {"torch": "2"})
    # 5 ms beside a full precision of 8 ms are 6.25 ms where that takes 10 ms.
    assert found.figures["latency_p50_ms"].value == pytest.approx(6.25)
    assert found.violations == pytest.approx({"accuracy": -0.2, "latency_p50_ms": 0.5625, "peak_memory_mib": -5 / 9})
    assert not found.feasible


def test_response_times_are_recorded_under_a_load_only() -> None:
    reference = replace(REFERENCE, workloads_p50_ms={Workload.REQUEST: 8.0})
    requests = outcome(measured(latency=(samples(), samples(Workload.REQUEST))))
    free, loaded = (planned().finished(requests, reference, (), {}, rate) for rate in (None, 20.0))
    assert loaded.figures.keys() - free.figures.keys() == {"queued_latency_p50_ms", "queued_latency_p90_ms"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": (), "working_bytes": None}, "latency not measured: the quality breaks a limit"),
        (
            {"latency": (), "working_bytes": None, "shifted": (0.1, 0.5)},
            "latency not measured: the quality on shifted data breaks a limit",
        ),
        (
            {"latency": (samples(gave_up=True),)},
            "given up after 40 passes: slower than a limit, or than maps that lose no more",
        ),
    ],
)
def test_a_map_that_was_not_measured_in_full_is_rejected(changes: Mapping[str, Any], message: str) -> None:
    found = planned().finished(outcome(measured(**changes)), REFERENCE, LIMITS, {})
    assert (found.state, found.message) == (TrialState.REJECTED, message)
    assert found.figures["accuracy"].value == 0.6
    assert set(found.violations) == {limit.metric for limit in LIMITS if limit.metric in found.figures}, (
        "only what is known"
    )


@pytest.mark.parametrize(("missing", "message"), [(None, None), ("no data yet", "no held-out accuracy: no data yet")])
def test_a_final_measurement_says_what_it_lacks(missing: str | None, message: str | None) -> None:
    final = planned(kind=TrialKind.FINAL).finished(outcome(measured(held_out_missing=missing)), REFERENCE, LIMITS, {})
    assert (final.kind, final.state, final.message) == (TrialKind.FINAL, TrialState.COMPLETE, message)


def test_full_precision_is_as_fast_as_itself() -> None:
    noisy = outcome(measured(latency=(samples(), samples(Workload.DECODE))))
    reference = replace(REFERENCE, workloads_p50_ms={Workload.DECODE: 8.0})
    own = planned(FULL).finished(noisy, reference, (), {}).figures
    assert own["latency_ratio"] == own["decode_latency_ratio"] == Figure(value=1.0)
    assert "request_latency_ratio" not in own
    other = planned().finished(noisy, reference, (), {}).figures
    assert other["latency_ratio"].value == other["decode_latency_ratio"].value == pytest.approx(0.625)


def test_the_first_trial_is_its_own_reference() -> None:
    found = planned(FULL).finished(outcome(measured()), None, (), {}).figures
    assert found["accuracy_drop"].value == 0.0
    assert found["latency_p50_ms"].value == pytest.approx(5.0 * 5.0 / 8.0), "the drift between its own passes is left"


@pytest.mark.parametrize("accuracy", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_a_failure(accuracy: float) -> None:
    found = planned().finished(outcome(measured(accuracy=accuracy)), REFERENCE, LIMITS, {"generation": 3})
    assert (found.state, found.failure) == (TrialState.FAILED, FailureCause.ERROR)
    assert found.message == "accuracy, accuracy_drop is not a finite number"
    assert (found.figures, found.violations) == ({}, {})
    assert found.sampler_state == {"generation": 3}, "the sampler proposed it all the same"


def test_a_failure_is_recorded_with_its_cause() -> None:
    failure = Failure(cause=FailureCause.TIMEOUT, message="took too long", attempts=2)
    found = planned().finished(outcome(failure), REFERENCE, LIMITS, {})
    assert (found.state, found.failure, found.message) == (TrialState.FAILED, FailureCause.TIMEOUT, "took too long")
    assert (found.attempts, found.worker, found.figures, found.seconds) == (2, "w", {}, 0.0)


def test_a_map_that_never_runs_says_which_limits_it_breaks() -> None:
    known = {"peak_memory_mib": Figure(value=12.0), "weight_memory_mib": Figure(value=5.0)}
    limits = (*LIMITS, Constraint(metric="weight_memory_mib", limit=8.0, at_most=True))
    found = planned().ruled_out(known, limits)
    assert (found.state, found.attempts, found.figures) == (TrialState.REJECTED, 0, known)
    assert found.violations == pytest.approx({"peak_memory_mib": 1 / 3, "weight_memory_mib": -3 / 8})
    assert found.message == "not run: breaks peak_memory_mib"
    both = (limits[2], Constraint(metric="weight_memory_mib", limit=4.0, at_most=True))
    assert planned().ruled_out(known, both).message == "not run: breaks peak_memory_mib, weight_memory_mib"


REPORT = RecoveryReport(
    method="blocks", settings=RecoverySettings(), seconds=3.0, samples=48, validation_samples=16, before=0.03,
    after=0.01, layers=("a",), kept={"b": "full precision"}, sha256="5" * 64, nbytes=9,
)  # fmt: skip


INTEGERS = {"a": "int8_dynamic", "b": "fp32"}


def parent(**changes: Any) -> TrialRecord:
    final = replace(planned(INTEGERS, TrialKind.FINAL), label="uniform int8_dynamic", backend="onnxruntime")
    found = final.finished(
        outcome(measured(session_seconds=0.25, held_out=(0.5, 0.8), shifted=(0.4, 0.2))), SHIFTED, LIMITS, {"g": 1}
    )
    return replace(found, **changes)


SHIFTED = replace(REFERENCE, shifted_accuracy=0.5)


def recovered(**changes: Any) -> Recovered:
    better = measured(
        accuracy=0.75, divergence=0.001, weight_bytes=1, latency=(), working_bytes=None, shifted=(0.45, 0.1),
        seconds=1.0, forward_seconds=0.5,
    )  # fmt: skip
    return Recovered(report=REPORT, learned=b"learned", measurement=replace(better, **changes))


def test_a_recovered_map_has_its_own_quality_and_the_speed_and_memory_of_its_parent() -> None:
    of = parent()
    found = recovered_trial(of, recovered(), SHIFTED, LIMITS, 12)
    assert found is not None
    assert (found.job_id, found.number, found.kind, found.state) == ("j", 12, TrialKind.RECOVERED, TrialState.COMPLETE)
    assert (found.parent, found.recovery, found.label) == (7, REPORT, "uniform int8_dynamic")
    assert found.addition == " on onnxruntime, recovered"
    assert (found.choices, found.backend) == (INTEGERS, "onnxruntime")
    assert found.key == map_key(INTEGERS, "onnxruntime", "5" * 64) != of.key
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values == pytest.approx(
        {
            "accuracy": 0.75, "accuracy_drop": 0.0625, "divergence": 0.001,
            "shifted_accuracy": 0.45, "shifted_accuracy_drop": 0.1, "shifted_divergence": 0.1,
        } | {name: of.figures[name].value for name in ("latency_p50_ms", "latency_p90_ms", "latency_ratio")}
        | {"weight_memory_mib": 3.0, "peak_memory_mib": 4.0, "session_ms": 250.0}
    )  # fmt: skip
    assert found.figures["latency_ratio"] == of.figures["latency_ratio"], "its interval too"
    # The parent's held-out figures are of other weights.
    assert "held_out_accuracy" in of.figures
    assert found.violations == pytest.approx({"accuracy": -0.5, "latency_p50_ms": 0.5625, "peak_memory_mib": -5 / 9})
    assert (found.seconds, found.forward_seconds, found.sampler_state, found.message) == (1.0, 0.5, {}, None)


def test_a_recovered_map_may_be_measured_on_held_out_data() -> None:
    found = recovered_trial(parent(), recovered(held_out=(0.7, 0.8)), SHIFTED, LIMITS, 12)
    assert found is not None
    assert found.figures["held_out_accuracy_drop"].value == pytest.approx(0.125)
    lacking = recovered_trial(parent(), recovered(held_out_missing="no data"), SHIFTED, LIMITS, 12)
    assert lacking is not None
    assert lacking.message == "no held-out accuracy: no data"


def test_limits_judge_a_recovered_map_anew() -> None:
    strict = (Constraint(metric="divergence", limit=0.005, at_most=True),)
    of = parent(violations={"divergence": 1.0})
    found = recovered_trial(of, recovered(), SHIFTED, strict, 12)
    assert found is not None
    assert (of.feasible, found.feasible) == (False, True)
    assert found.violations == pytest.approx({"divergence": -0.8})


def test_a_map_that_was_kept_is_nothing_new() -> None:
    assert recovered_trial(parent(), replace(recovered(), measurement=None, learned=b""), SHIFTED, LIMITS, 12) is None


def test_a_recovered_map_with_a_quality_that_is_no_number_failed() -> None:
    found = recovered_trial(parent(), recovered(accuracy=math.nan), SHIFTED, LIMITS, 12)
    assert found is not None
    assert (found.state, found.failure, found.figures) == (TrialState.FAILED, FailureCause.ERROR, {})
    assert found.message == "accuracy, accuracy_drop is not a finite number"
    assert (found.parent, found.kind) == (7, TrialKind.RECOVERED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": TrialKind.RECOVERED, "parent": 3}, "trial 7 is recovered already; take its parent, trial 3"),
        ({"state": TrialState.REJECTED}, r"trial 7 was not measured in full \(rejected\); take another trial"),
        ({"state": TrialState.FAILED}, r"trial 7 was not measured in full \(failed\)"),
    ],
)
def test_only_plain_maps_that_were_measured_in_full_are_recovered(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        recovered_trial(parent(**changes), recovered(), SHIFTED, LIMITS, 12)
