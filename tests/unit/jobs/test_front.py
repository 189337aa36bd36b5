from typing import Any

import pytest

from autotune.errors import JobSpecError, NoFeasibleMapError, NotFoundError
from autotune.jobs.front import (
    LiveFront,
    compute_front,
    nearest,
    nearest_trial,
    needing_final_run,
    pick,
    violations,
    without_superseded,
)
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import OVERLOADED_MS, Constraint
from workers.timing.estimates import Figure

OBJECTIVES = ("latency_p50_ms", "divergence")
LIMITS = (
    Constraint(metric="accuracy_drop", limit=0.02, at_most=True),
    Constraint(metric="latency_p50_ms", limit=9.5, at_most=True),
)


def trial(number: int, latency: float, divergence: float, memory: float = 1.0, **changes: Any) -> TrialRecord:
    figures = {
        "latency_p50_ms": Figure(value=latency),
        "divergence": Figure(value=divergence),
        "weight_memory_mib": Figure(value=memory),
        "accuracy": Figure(value=0.9 - divergence),
    }
    fields: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.SEARCH, "label": None, "state": TrialState.COMPLETE,
        "choices": {}, "key": str(number), "figures": figures, "finished_at": now(),
    }  # fmt: skip
    return TrialRecord(**fields | changes)


TRIALS = [
    trial(0, 10.0, 0.0, 8.0),
    trial(1, 2.0, 1e-2, 2.0),
    trial(2, 4.0, 1e-4, 4.0),
    trial(3, 5.0, 1e-2, 1.0),
    trial(4, 1.0, 1e-7, 1.0, violations={"latency_p50_ms": 0.1}),
    trial(5, 0.5, 1e-7, 1.0, state=TrialState.REJECTED),
]


def test_front_holds_feasible_non_dominated_trials() -> None:
    front = compute_front(TRIALS, OBJECTIVES)
    assert front.members == (0, 1, 2)
    assert front.trials == 6
    assert front.hypervolume > 0


def test_hypervolume_grows_with_the_front_and_does_not_depend_on_the_machine() -> None:
    before, after = compute_front(TRIALS[:2], OBJECTIVES), compute_front(TRIALS[:3], OBJECTIVES)
    assert after.hypervolume > before.hypervolume
    slower = [trial(t.number, 3 * t.figures["latency_p50_ms"].value, t.figures["divergence"].value) for t in TRIALS[:3]]
    assert compute_front(slower, OBJECTIVES).hypervolume == pytest.approx(after.hypervolume)


@pytest.mark.parametrize(
    ("how", "number"), [("fastest", 1), ("smallest", 3), ("most-accurate", 0), ("knee", 2), ("4", 4)]
)
def test_picks(how: str, number: int) -> None:
    assert pick(TRIALS, how, OBJECTIVES).number == number


def test_a_recovered_map_is_on_the_front_and_needs_no_other_measurement() -> None:
    recovered = trial(6, 4.0, 5e-5, 4.0, kind=TrialKind.RECOVERED, parent=2)
    known = [*TRIALS, recovered]
    assert compute_front(known, OBJECTIVES).members == (0, 1, 6), "its parent is as fast and loses more"
    live = LiveFront(TRIALS, OBJECTIVES, compute_front(TRIALS, OBJECTIVES))
    found = live.add(recovered)
    assert found is not None
    assert found.members == (0, 1, 6)
    assert pick(known, "6", OBJECTIVES) is recovered
    final = trial(7, 4.5, 1e-4, 4.0, kind=TrialKind.FINAL, key="2")
    assert without_superseded([*known, final]) == [TRIALS[0], TRIALS[1], *TRIALS[3:], recovered, final]
    assert pick(known, "knee", OBJECTIVES) is recovered
    assert [one.number for one in needing_final_run(known, OBJECTIVES)] == [2, 1, 3, 0]


def test_wrong_picks_are_explained() -> None:
    with pytest.raises(JobSpecError, match="unknown pick 'fast'; did you mean 'fastest'"):
        pick(TRIALS, "fast", OBJECTIVES)
    with pytest.raises(NotFoundError, match="no trial 77"):
        pick(TRIALS, "77", OBJECTIVES)


def test_nothing_feasible_names_the_nearest_and_what_it_misses() -> None:
    broken = [trial(t.number, 10.0, 0.0, violations={"latency_p50_ms": 0.1 * (4 - t.number)}) for t in TRIALS[:3]]
    with pytest.raises(NoFeasibleMapError, match=r"Nearest is trial 2, which misses latency_p50_ms"):
        pick(broken, "knee", OBJECTIVES)
    assert compute_front(broken, OBJECTIVES).members == ()


def test_nearest_breaks_its_limits_least_and_was_measured_in_full() -> None:
    near = trial(1, 1, 1, violations={"latency_p95_ms": 0.1, "accuracy_drop": -5.0})
    far = trial(2, 1, 1, violations={"latency_p95_ms": 0.3, "accuracy_drop": -9.0})
    partial = trial(3, 1, 1, violations={"accuracy_drop": 0.05}, state=TrialState.REJECTED)
    failed = trial(4, 1, 1, violations={}, figures={}, state=TrialState.FAILED)
    assert nearest_trial([far, near, partial, failed]) is near
    assert nearest_trial([partial, failed]) is partial
    assert nearest_trial([failed]) is None
    assert nearest([failed]) == "No trial was measured"


def test_the_nearest_of_overloaded_maps_is_asked_for_least() -> None:
    limit = Constraint(metric="queued_latency_p95_ms", limit=50.0, at_most=True)
    values = {1: 1.5 * OVERLOADED_MS, 2: 1.25 * OVERLOADED_MS}
    overloaded = [
        trial(
            number, 1, 1, figures=(found := {limit.metric: Figure(value=value)}), violations=violations(found, [limit])
        )
        for number, value in values.items()
    ]
    assert nearest(overloaded, [limit]) == (
        "Nearest is trial 2: queued_latency_p95_ms: requests arrive 1.25 times as fast as it can serve them"
    )


@pytest.mark.parametrize(
    ("limit", "value", "text"),
    [
        (Constraint(metric="latency_p95_ms", limit=4.0, at_most=True), 10.5, "10.5 ms, limit 4.00 ms (2.6x the limit)"),
        (Constraint(metric="latency_p95_ms", limit=4.0, at_most=True), 4.4, "4.40 ms, limit 4.00 ms (10 % off)"),
        (Constraint(metric="accuracy", limit=0.8, at_most=False), 0.6, "0.6000, limit 0.8000 (25 % off)"),
        (Constraint(metric="accuracy_drop", limit=0.0, at_most=True), 0.02, "2.00 %, limit 0.00 %"),
    ],
)
def test_a_missed_limit_is_told_with_value_and_limit(limit: Constraint, value: float, text: str) -> None:
    assert limit.missed_by(value) == f"{limit.metric} is {text}"


def test_violations_are_relative_and_only_of_what_was_measured() -> None:
    found = violations({"latency_p50_ms": Figure(value=19.0)}, LIMITS)
    assert found == {"latency_p50_ms": pytest.approx(1.0)}
    floor = Constraint(metric="accuracy", limit=0.8, at_most=False)
    assert violations({"accuracy": Figure(value=0.6)}, [floor]) == {"accuracy": pytest.approx(0.25)}
    assert violations({"accuracy": Figure(value=0.8)}, [floor]) == {"accuracy": 0.0}
