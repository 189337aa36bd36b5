"""What candidates must beat, from the driver's front to the worker's limit."""

import dataclasses
import math
from typing import Any

import pytest

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference
from autotune.search.early_stopping import incumbents
from workers.candidate import Candidate, Incumbent
from workers.measurement import Workload
from workers.timing.estimates import Figure

REFERENCE = Reference(accuracy=0.9, latency_p50_ms=10.0)
KNOWN = {"weight_memory_mib": Figure(value=5.0)}
LIMIT = Constraint(metric="latency_p50_ms", limit=8.0, at_most=True)


def trial(ratio: float, divergence: float, memory: float = 1.0, **figure: Any) -> TrialRecord:
    figures = {
        "latency_ratio": Figure(value=ratio, **figure), "divergence": Figure(value=divergence),
        "accuracy": Figure(value=0.9 - divergence), "weight_memory_mib": Figure(value=memory),
    }  # fmt: skip
    return TrialRecord(
        job_id="j", number=0, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={}, key="",
        figures=figures, finished_at=now(),
    )  # fmt: skip


FRONT = [trial(0.5, 1e-2, high=0.52), trial(0.7, 1e-3, memory=9.0)]


def found(*objectives: str, constraints: tuple[Constraint, ...] = ()) -> tuple[Incumbent, ...]:
    return incumbents(FRONT, KNOWN, objectives, constraints, REFERENCE)


def test_the_front_are_rivals_at_their_slowest() -> None:
    expected = (Incumbent(latency_ratio=0.52, divergence=1e-2), Incumbent(latency_ratio=0.7, divergence=1e-3))
    assert found("latency_p50_ms", "divergence") == expected
    assert found("accuracy", "latency_ratio")[0] == Incumbent(latency_ratio=0.52, accuracy=0.89)


def test_maps_of_more_memory_are_no_rivals_where_memory_counts() -> None:
    assert found("latency_p50_ms", "divergence", "weight_memory_mib") == (
        Incumbent(latency_ratio=0.52, divergence=1e-2),
    )


@pytest.mark.parametrize("objectives", [("latency_p95_ms", "divergence"), ("latency_p50_ms", "peak_memory_mib")])
def test_nobody_is_given_up_while_other_objectives_are_unknown(objectives: tuple[str, ...]) -> None:
    assert found(*objectives) == ()
    assert found(*objectives, constraints=(LIMIT,)) == (Incumbent(latency_ratio=0.8),)


def test_before_anything_is_feasible_nobody_is_hopeless() -> None:
    assert incumbents([], KNOWN, ("latency_p50_ms", "divergence"), (LIMIT,), REFERENCE) == ()


@pytest.mark.parametrize(("divergence", "limit"), [(2e-2, 0.52), (1e-2, 0.52), (5e-3, 0.7), (1e-4, 0.8)])
def test_less_loss_excuses_more_time_up_to_the_limit(divergence: float, limit: float) -> None:
    candidate = Candidate(number=1, choices={}, incumbents=found("latency_p50_ms", "divergence", constraints=(LIMIT,)))
    assert candidate.slowest_hopeful(0.5, divergence) == limit


def test_without_rivals_every_candidate_is_measured_to_the_end() -> None:
    assert Candidate(number=1, choices={}).slowest_hopeful(0.0, 1.0) == math.inf
    by_accuracy = Candidate(number=1, choices={}, incumbents=found("accuracy", "latency_ratio"))
    assert by_accuracy.slowest_hopeful(0.9, 1.0) == math.inf
    assert by_accuracy.slowest_hopeful(0.89, 0.0) == 0.52


def test_the_latency_of_the_objectives_decides_what_is_hopeless() -> None:
    rival = trial(0.5, 1e-2)
    rival = dataclasses.replace(rival, figures=rival.figures | {"prefill_latency_ratio": Figure(value=0.6)})
    reference = dataclasses.replace(REFERENCE, workloads_p50_ms={Workload.PREFILL: 20.0})
    limit = Constraint(metric="prefill_latency_p50_ms", limit=18.0, at_most=True)
    assert incumbents([rival], KNOWN, ("prefill_latency_p50_ms", "divergence"), (LIMIT, limit), reference) == (
        Incumbent(latency_ratio=0.9),
        Incumbent(latency_ratio=0.6, divergence=1e-2),
    )
