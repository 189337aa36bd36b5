"""What a job may spend, what it keeps for its final measurements, and how much time it has left."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.jobs.budget import MOST_FINAL, Budget, left_s, remaining_s, searched
from autotune.jobs.records import JobRecord, JobStage, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now

TRIAL = TrialRecord(
    job_id="j", number=0, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={}, key="", figures={},
    seconds=2.0, finished_at=now(),
)  # fmt: skip
FINAL = dataclasses.replace(TRIAL, kind=TrialKind.FINAL, seconds=10.0)


def budget(spent: Sequence[TrialRecord], repeats: int = 100, **search: Any) -> Budget:
    spec = {
        "name": "b",
        "task": {"name": "digits-cnn"},
        "search": search,
        "measurement": {"repeats": repeats, "half_width": None},
    }
    return Budget(JobSpec.parse(spec), spent)


def test_recovered_maps_cost_the_search_nothing() -> None:
    recovered = dataclasses.replace(TRIAL, kind=TrialKind.RECOVERED, parent=0, seconds=100.0)
    trials = [TRIAL, recovered, FINAL]
    assert searched(trials) == 1
    spent, plain = budget(trials), budget([TRIAL, FINAL])
    assert (spent.searched, spent.trial_s) == (plain.searched, plain.trial_s)


def test_full_precision_tells_how_long_a_trial_takes_only_until_there_is_another() -> None:
    full, other = (dataclasses.replace(TRIAL, seconds=seconds) for seconds in (9.0, 5.0))
    assert budget([]).trial_s == math.inf
    assert budget([full]).trial_s == 9.0
    assert budget([full, other]).trial_s == 5.0
    assert budget([full, other, TRIAL]).trial_s == 3.5


def test_final_trials_do_not_count_as_searched() -> None:
    assert searched([TRIAL, FINAL, TRIAL]) == 2
    limits = budget([TRIAL, TRIAL, FINAL], trials=3)
    assert limits.searched == 2
    assert limits.allows_search(0, 1e9)
    assert not limits.allows_search(1, 0.0)
    assert not limits.is_spent
    limits.spend(TRIAL)
    assert limits.is_spent


@pytest.mark.parametrize(
    ("limit_s", "repeats", "until_s", "final_s"),
    [
        (400.0, 100, 360.0, 10.0),  # four finals of five times 2 s
        (60.0, 100, 45.0, 10.0),  # but never more than a quarter
        (400.0, 500, 392.0, 2.0),  # finals are no longer than trials
    ],
)
def test_the_search_leaves_time_for_the_finals(limit_s: float, repeats: int, until_s: float, final_s: float) -> None:
    limits = budget([TRIAL], repeats, time_limit_s=limit_s)
    assert limits.allows_search(0, until_s - 0.1)
    assert not limits.allows_search(0, until_s)
    assert limits.allows_final(0, limit_s - final_s - 0.1)
    assert not limits.allows_final(0, limit_s - final_s), "a final would end after the limit"


def test_finals_are_few() -> None:
    limits = budget([TRIAL, FINAL])
    for _ in range(MOST_FINAL - 1):
        limits.spend(FINAL)
    assert limits.allows_final(0, 0.0)
    assert not limits.allows_final(1, 0.0)


def test_remaining_seconds_follow_the_pace_and_the_limit() -> None:
    # Six trials at 2 s, then four finals of five times that.
    assert budget([TRIAL] * 4, trials=10).remaining_s(8.0) == pytest.approx(12.0 + 40.0)
    assert budget([TRIAL] * 4, 500, trials=10).remaining_s(8.0) == pytest.approx(12.0 + 8.0)
    assert budget([TRIAL] * 4, trials=10, time_limit_s=9.0).remaining_s(8.0) == pytest.approx(1.0)
    assert budget([], trials=10).remaining_s(8.0) is None


def test_remaining_seconds_leave_out_what_probing_took_of_the_limit() -> None:
    limits = budget([TRIAL] * 4, trials=100, time_limit_s=100.0)
    assert limits.remaining_s(38.0, aside_s=30.0) == pytest.approx(62.0)
    # Six trials at the pace of 2 s that is left, then four finals of five times 2 s.
    assert budget([TRIAL] * 4, trials=10).remaining_s(38.0, aside_s=30.0) == pytest.approx(12.0 + 40.0)


def test_remaining_seconds_at_the_end_are_those_of_the_finals() -> None:
    limits = budget([TRIAL] * 4, trials=100)  # the search ended early
    for left in (3, 2, 1):
        limits.spend(dataclasses.replace(FINAL, seconds=3.0))
        assert limits.remaining_s(8.0) == pytest.approx(left * 3.0)
    limits.spend(FINAL)
    limits.spend(FINAL)
    assert limits.remaining_s(8.0) == 0.0


def test_limits_can_change_while_a_job_runs() -> None:
    limits = budget([TRIAL] * 3, 500, trials=3)
    assert limits.is_spent
    limits.limit(5, 100.0)
    assert not limits.is_spent
    assert limits.allows_search(1, 0.0)
    assert not limits.allows_search(2, 0.0)
    assert not limits.allows_search(1, 100.0)
    assert limits.remaining_s(90.0) == pytest.approx(10.0)
    limits.limit(2, None)
    assert limits.is_spent, "a budget below what is spent already ends the search"
    assert limits.remaining_s(90.0) == pytest.approx(4 * 2.0), "only the finals are left"
    assert limits.allows_final(0, 1e9)


def test_finals_that_end_at_a_half_width_are_expected_to_be_short_until_some_were_measured() -> None:
    limits = Budget(JobSpec.parse({"name": "b", "task": {"name": "digits-cnn"}}), [TRIAL])
    assert limits.remaining_s(2.0) == pytest.approx(99 * 2.0 + 4 * 4.0)
    limits.limit(1, None)
    limits.spend(dataclasses.replace(FINAL, seconds=3.0))
    assert limits.remaining_s(5.0) == pytest.approx(3 * 3.0)


def test_what_is_left_and_what_is_spent_follow_the_limit_and_the_trials() -> None:
    assert budget([], trials=10).left_s(5.0) == math.inf
    assert budget([], time_limit_s=50.0).left_s(5.0) == 45.0
    assert budget([TRIAL] * 4, trials=10).left_s(5.0) == 12.0
    # A quarter of the limit is reserved for final measurements.
    assert budget([TRIAL] * 4, trials=10, time_limit_s=9.0).left_s(5.0) == 1.75
    assert (budget([]).share(5.0), budget([], time_limit_s=50.0).share(5.0)) == (0.0, 0.1)


def test_timing_is_bounded_by_the_limit_only() -> None:
    assert budget([TRIAL]).timing_s(5.0, final=False) == math.inf
    limited = budget([TRIAL], time_limit_s=100.0)
    assert limited.timing_s(40.0, final=False) == 5.0
    assert limited.timing_s(40.0, final=True) == 30.0
    assert limited.timing_s(140.0, final=True) == 0.0


@given(st.integers(0, 12), st.floats(0.0, 200.0), st.none() | st.floats(1.0, 100.0))
def test_what_is_left_is_never_negative_and_never_beyond_the_limit(
    done: int, elapsed_s: float, limit_s: float | None
) -> None:
    limits = budget([TRIAL] * done, trials=10, time_limit_s=limit_s)
    most_s = math.inf if limit_s is None else max(0.0, limit_s - elapsed_s)
    for found in (limits.left_s(elapsed_s), limits.remaining_s(elapsed_s), limits.timing_s(elapsed_s, final=True)):
        assert found is None or 0.0 <= found <= most_s
    assert (limits.remaining_s(elapsed_s) is None) == (done == 0)
    if limit_s is not None and elapsed_s >= limit_s:
        assert not limits.allows_search(0, elapsed_s)
        assert not limits.allows_final(0, elapsed_s)


@pytest.mark.parametrize(
    ("searched", "elapsed_s", "limit_s", "expected"),
    [
        (0, 8.0, None, None),
        (4, 8.0, None, 12.0),
        (4, 8.0, 15.0, 7.0),
        (4, 8.0, 5.0, 0.0),
        (10, 8.0, None, 0.0),
        (12, 8.0, 99.0, 0.0),
    ],
)
def test_the_pace_of_a_job_says_what_is_left(
    searched: int, elapsed_s: float, limit_s: float | None, expected: float | None
) -> None:
    assert remaining_s(searched, 10, elapsed_s, limit_s) == expected


def test_the_estimate_of_the_driver_comes_before_the_pace() -> None:
    spec = JobSpec.parse({"name": "b", "task": {"name": "digits-cnn"}, "search": {"trials": 10}})
    job = JobRecord(
        id="j", name="b", task="digits-cnn", document=spec.dump(), state=JobState.RUNNING, created_at=now(),
        updated_at=now(), elapsed_s=8.0,
    )  # fmt: skip
    estimated = dataclasses.replace(job, stage=JobStage(name="Searching", remaining_s=3.0))
    assert left_s(estimated, spec, 4) == 3.0
    assert left_s(estimated, spec, 0) is None, "before the first trial nothing is known"
    assert left_s(dataclasses.replace(job, stage=JobStage(name="Searching")), spec, 4) == 12.0
    assert left_s(job, spec, 4) == 12.0
