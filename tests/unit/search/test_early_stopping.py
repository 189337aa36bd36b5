"""What candidates must beat, from the driver's front to the worker's limit."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference
from autotune.search.early_stopping import incumbents, quality_limits
from workers.candidate import Candidate, Incumbent
from workers.measurement import Split, Workload
from workers.timing.estimates import Figure

REFERENCE = Reference(accuracy=0.9, latency_p50_ms=10.0)
KNOWN = {"weight_memory_mib": Figure(value=5.0)}
LIMIT = Constraint(metric="latency_p50_ms", limit=8.0, at_most=True)
#: The data that a search sees.
OF_A_SEARCH = (Split.EVALUATION, Split.SHIFTED)


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


def test_maps_on_the_front_are_rivals_at_their_slowest() -> None:
    expected = (Incumbent(latency_ratio=0.52, divergence=1e-2), Incumbent(latency_ratio=0.7, divergence=1e-3))
    assert found("latency_p50_ms", "divergence") == expected
    assert found("accuracy", "latency_ratio")[0] == Incumbent(latency_ratio=0.52, accuracy=0.89)


def test_maps_with_more_memory_are_no_rivals_if_memory_counts() -> None:
    assert found("latency_p50_ms", "divergence", "weight_memory_mib") == (
        Incumbent(latency_ratio=0.52, divergence=1e-2),
    )


@pytest.mark.parametrize("objectives", [("latency_p95_ms", "divergence"), ("latency_p50_ms", "peak_memory_mib")])
def test_no_candidate_is_given_up_while_other_objectives_are_unknown(objectives: tuple[str, ...]) -> None:
    assert found(*objectives) == ()
    assert found(*objectives, constraints=(LIMIT,)) == (Incumbent(latency_ratio=0.8),)


def test_before_any_map_is_feasible_no_candidate_is_hopeless() -> None:
    assert incumbents([], KNOWN, ("latency_p50_ms", "divergence"), (LIMIT,), REFERENCE) == ()


@pytest.mark.parametrize(("divergence", "limit"), [(2e-2, 0.52), (1e-2, 0.52), (5e-3, 0.7), (1e-4, 0.8)])
def test_less_loss_excuses_more_time_up_to_the_limit(divergence: float, limit: float) -> None:
    candidate = Candidate(number=1, choices={}, incumbents=found("latency_p50_ms", "divergence", constraints=(LIMIT,)))
    assert candidate.slowest_hopeful(0.5, divergence) == limit


def test_recovered_maps_are_no_rivals() -> None:
    better = dataclasses.replace(trial(0.4, 1e-4), kind=TrialKind.RECOVERED, parent=0)
    asked = (KNOWN, ("divergence", "latency_ratio"), (LIMIT,), REFERENCE)
    assert incumbents([*FRONT, better], *asked) == incumbents(FRONT, *asked)
    assert incumbents([better], *asked) == ()


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


@given(
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.none() | st.floats(-2.0, 2.0),
    st.none() | st.floats(0.0, 0.9),
    st.none() | st.floats(1e-6, 1.0),
    st.sampled_from([Split.EVALUATION, Split.SHIFTED]),
)
def test_the_quality_that_is_needed_is_that_of_all_limits(
    full: float, accuracy: float, least: float | None, drop: float | None, most: float | None, split: Split
) -> None:
    prefix = "" if split is Split.EVALUATION else "shifted_"
    wanted = {"accuracy": (least, False), "accuracy_drop": (drop, True), "divergence": (most, True)}
    limits = [Constraint(metric="latency_p50_ms", limit=8.0, at_most=True)] + [
        Constraint(metric=f"{prefix}{name}", limit=limit, at_most=at_most)
        for name, (limit, at_most) in wanted.items()
        if limit is not None
    ]
    reference = Reference(accuracy=full, latency_p50_ms=10.0, shifted_accuracy=full)
    found, other = (quality_limits(limits, reference)[each] for each in (split, *({*OF_A_SEARCH} - {split})))
    assert found.most_divergence == (math.inf if most is None else most)
    # The drop is relative to the size of full precision's accuracy, whatever its sign.
    holds = (least is None or accuracy >= least) and (drop is None or full - accuracy <= drop * abs(full))
    assume(abs(accuracy - found.least_accuracy) > 1e-9)
    assert (accuracy > found.least_accuracy) == holds
    assert (other.least_accuracy, other.most_divergence) == (-math.inf, math.inf), "limits of other data do not count"


def test_without_an_accuracy_of_full_precision_no_drop_is_too_large() -> None:
    relative = [Constraint(metric="shifted_accuracy_drop", limit=0.1, at_most=True)]
    assert quality_limits(relative, REFERENCE)[Split.SHIFTED].least_accuracy == -math.inf


def test_the_accuracy_of_a_rival_counts_where_an_objective_is_made_of_it() -> None:
    (rival,) = found("accuracy_drop", "latency_p50_ms")[:1]
    assert rival == Incumbent(latency_ratio=0.52, accuracy=0.89)
    (both,) = found("accuracy", "divergence", "latency_p50_ms")[:1]
    assert both == Incumbent(latency_ratio=0.52, accuracy=0.89, divergence=1e-2)


def test_without_a_latency_among_the_objectives_only_limits_stop_anything() -> None:
    assert found("accuracy", "weight_memory_mib") == ()
    assert found("accuracy", "weight_memory_mib", constraints=(LIMIT,)) == (Incumbent(latency_ratio=0.8),)
    other = Constraint(metric="latency_p95_ms", limit=8.0, at_most=True)
    assert found("accuracy", "latency_p50_ms", constraints=(other,)) == found("accuracy", "latency_p50_ms")


def test_a_rival_of_equal_memory_is_one() -> None:
    rivals = incumbents(
        [trial(0.5, 1e-2, memory=5.0)], KNOWN, ("latency_p50_ms", "divergence", "weight_memory_mib"), (), REFERENCE
    )
    assert rivals == (Incumbent(latency_ratio=0.5, divergence=1e-2),)
