"""Fronts and picks over histories of trials: maps that failed, that break a limit, and that are measured again."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.jobs.front import (
    PICKS,
    LiveFront,
    compute_front,
    find_trial,
    nearest_trial,
    needing_final_run,
    pick,
    without_superseded,
)
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from workers.timing.estimates import Figure

OBJECTIVES = ("latency_p50_ms", "divergence")
AT = now()


def trial(number: int, latency: float, divergence: float, memory: float = 1.0) -> TrialRecord:
    values = {
        "latency_p50_ms": latency, "divergence": divergence, "accuracy": 0.9 - divergence, "weight_memory_mib": memory,
    }  # fmt: skip
    return TrialRecord(
        job_id="j", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={},
        key=str(number), figures={name: Figure(value=value) for name, value in values.items()}, finished_at=AT,
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[TrialRecord]:
    """Full precision first; small whole figures force ties. A map has at most one final measurement."""
    trials = [trial(0, 8.0, 0.0, 8.0)]
    measured_again: set[str] = set()
    for number in range(1, draw(st.integers(1, 12))):
        latency, memory = float(draw(st.integers(1, 9))), float(draw(st.integers(1, 8)))
        made = trial(number, latency, draw(st.sampled_from([1e-4, 1e-3, 1e-2])), memory)
        again = draw(st.none() | st.sampled_from(trials))
        if again is not None and again.kind is not TrialKind.FINAL and again.key not in measured_again:
            measured_again.add(again.key)
            made = replace(made, kind=TrialKind.FINAL, key=again.key)
        made = replace(made, violations={"accuracy": draw(st.sampled_from([-0.5, 0.0, 0.0, 0.25]))})
        if draw(st.integers(0, 5)) == 0:
            made = replace(made, state=TrialState.FAILED, figures={}, violations={})
        trials.append(made)
    return trials


def value(one: TrialRecord, metric: str) -> float:
    return one.figures[metric].value


@given(histories())
def test_a_front_that_is_kept_up_to_date_is_the_one_computed_anew(trials: list[TrialRecord]) -> None:
    live, recorded = LiveFront([], OBJECTIVES), None
    for count, made in enumerate(trials, start=1):
        found = live.add(made)
        whole = compute_front(trials[:count], OBJECTIVES)
        assert (found is None) == (recorded is not None and recorded.members == whole.members), "told if it changed"
        if found is not None:
            assert (found.trials, found.members) == (whole.trials, whole.members)
            assert found.hypervolume == pytest.approx(whole.hypervolume)
            recorded = found
        assert tuple(sorted(member.number for member in live.members)) == whole.members


@given(histories(), st.data())
def test_a_front_is_continued_from_its_record(trials: list[TrialRecord], data: st.DataObject) -> None:
    begun = data.draw(st.integers(1, len(trials)))
    live = LiveFront(trials[:begun], OBJECTIVES, compute_front(trials[:begun], OBJECTIVES))
    for made in trials[begun:]:
        live.add(made)
    assert tuple(sorted(member.number for member in live.members)) == compute_front(trials, OBJECTIVES).members


def test_a_front_without_full_precision_has_no_scale() -> None:
    live = LiveFront([], OBJECTIVES)
    assert live.add(replace(trial(0, 8.0, 0.0), state=TrialState.FAILED, figures={})) is None
    assert live.add(trial(1, 1.0, 1e-3)) is None
    assert live.members == []


@given(histories())
def test_the_front_is_of_the_feasible_maps_that_count(trials: list[TrialRecord]) -> None:
    members = compute_front(trials, OBJECTIVES).members
    counting = [one for one in without_superseded(trials) if one.feasible]

    def beats(one: TrialRecord, other: TrialRecord) -> bool:
        pairs = [(value(one, name), value(other, name)) for name in OBJECTIVES]
        return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)

    expected = [one.number for one in counting if not any(beats(other, one) for other in counting)]
    assert list(members) == sorted(expected)


@given(histories())
def test_every_map_counts_once_by_its_final_measurement_if_that_is_complete(trials: list[TrialRecord]) -> None:
    counting = without_superseded(trials)
    assert sorted(one.key for one in counting) == sorted({one.key for one in trials})
    for one in trials:
        again = next((other for other in trials if other.kind is TrialKind.FINAL and other.key == one.key), None)
        replaced = again is not None and again.state is TrialState.COMPLETE
        assert (one in counting) == ((one is again) if replaced else (one.kind is not TrialKind.FINAL))


@given(histories(), st.sampled_from(PICKS))
def test_a_pick_is_the_best_of_the_feasible_maps_in_its_metric(trials: list[TrialRecord], how: str) -> None:
    counting = [one for one in without_superseded(trials) if one.feasible]
    if not counting:
        return
    found = pick(trials, how, OBJECTIVES)
    assert found in counting
    if how == "knee":
        assert found.number in compute_front(trials, OBJECTIVES).members
        return
    metric, sign = {"fastest": ("latency_p50_ms", 1), "smallest": ("weight_memory_mib", 1),
                    "most-accurate": ("accuracy", -1)}[how]  # fmt: skip

    def rank(one: TrialRecord) -> tuple[float, float]:
        return sign * value(one, metric), value(one, "divergence")

    assert rank(found) == min(map(rank, counting))


@given(histories())
def test_a_number_picks_the_measurement_of_its_map_that_counts(trials: list[TrialRecord]) -> None:
    counting = without_superseded(trials)
    for one in trials:
        assert find_trial(trials, one.number) is one
        found = pick(trials, str(one.number), OBJECTIVES)
        assert found in counting
        assert found.key == one.key


@given(histories(), st.sampled_from(PICKS))
def test_every_pick_has_a_final_measurement_in_the_end(trials: list[TrialRecord], first: str) -> None:
    feasible = any(one.feasible for one in without_superseded(trials))
    needing = needing_final_run(trials, OBJECTIVES, first)
    if not feasible:
        assert needing == []
        return
    tried = {one.key for one in trials if one.kind is TrialKind.FINAL}
    picked = {pick(trials, how, OBJECTIVES).key for how in PICKS}
    assert {one.key for one in needing} == picked - tried
    if pick(trials, first, OBJECTIVES).key not in tried:
        assert needing[0].key == pick(trials, first, OBJECTIVES).key
    while needing:  # of equally good maps the earliest is picked, which another one becomes
        trials = [*trials, replace(needing[0], number=len(trials), kind=TrialKind.FINAL)]
        needing = needing_final_run(trials, OBJECTIVES, first)
    measured_again = [one.key for one in trials if one.kind is TrialKind.FINAL]
    assert len(set(measured_again)) == len(measured_again), "no map is measured a third time"
    assert {pick(trials, how, OBJECTIVES).key for how in PICKS} <= set(measured_again)


@given(histories())
def test_the_nearest_trial_breaks_its_limits_least(trials: list[TrialRecord]) -> None:
    found = nearest_trial(trials)
    known = [max(0.0, one.violations["accuracy"]) for one in trials if one.figures and one.violations]
    if found is None:
        assert not known
    else:
        assert max(0.0, found.violations["accuracy"]) == min(known)
