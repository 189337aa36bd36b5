"""What is recorded of a map: that it was ruled out, failed, was given up, or was measured."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autotune.jobs.records import TrialKind, TrialState
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference
from autotune.search.trials import PlannedTrial
from search_spaces.quantization_map import map_key
from workers.candidate import Candidate, Outcome
from workers.measurement import Environment, Failure, FailureCause, LatencySamples, Measurement, Workload
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
