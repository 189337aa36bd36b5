"""How far an estimate is, and when it has enough."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.progress import Stage, Step
from workers.sensitivity import estimate
from workers.sensitivity.estimate import _Quota
from workers.sensitivity.progress import LayerCount


def test_layers_count_once_on_a_batch_and_those_that_do_not_run_count_at_its_end() -> None:
    steps = list[Step]()
    count = LayerCount(steps.append, 3, samples=5, most_batches=9)
    count.begin_batch(2)  # so that five samples need three batches
    for layer in ("a", "b", "a"):
        count.done(layer)
    count.end_batch()
    count.begin_batch(2)
    count.done("b")
    count.end_batch()
    assert [(step.done, step.total) for step in steps] == [(0, 3), (1, 9), (2, 9), (2, 9), (4, 9)]
    assert {step.stage for step in steps} == {Stage.SENSITIVITIES}


@pytest.mark.parametrize(
    ("samples", "most_batches", "total"),
    [(2, 9, 2 * 6), (4, 9, 2 * 3), (5, 9, 2 * 3), (12, 9, 2), (100, 9, 2), (1, 9, 2 * 9), (0, 4, 2 * 4)],
)
def test_batches_needed_are_those_that_hold_the_samples_or_all(samples: int, most_batches: int, total: int) -> None:
    steps = list[Step]()
    count = LayerCount(steps.append, 2, samples=12, most_batches=most_batches)
    count.begin_batch(samples)
    count.done("a")
    assert steps[-1].total == total


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(1, 20))
def test_no_more_is_done_than_there_is(batches: list[int], samples: int) -> None:
    steps = list[Step]()
    count = LayerCount(steps.append, 2, samples=samples, most_batches=len(batches))
    for size in batches:
        count.begin_batch(size)
        count.done("a")
        count.done("b")
        assert 0 < steps[-1].done <= (steps[-1].total or 0)
        count.end_batch()
    assert steps[-1].done == 2 * len(batches)


@pytest.fixture
def watch(stop_clock: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return stop_clock(estimate)


def test_enough_samples_end_an_estimate_however_long_they_took(watch: SimpleNamespace) -> None:
    quota = _Quota(6, 10.0)
    for samples, is_met in ((4, False), (2, True)):
        watch.now_s += 5.0
        assert quota.is_met_after(samples) is is_met
    assert (quota.samples, quota.cut) == (6, False)


@pytest.mark.parametrize(("budget_s", "passes"), [(0.0, 1), (5.9, 1), (6.0, 2), (8.9, 2), (9.0, 3)])
def test_a_pass_that_would_last_too_long_is_not_begun(watch: SimpleNamespace, budget_s: float, passes: int) -> None:
    quota, made = _Quota(100, budget_s), 0
    is_met = False
    while not is_met:
        watch.now_s += 3.0
        made += 1
        is_met = quota.is_met_after(2)
    assert (made, quota.samples, quota.cut) == (passes, 2 * passes, True)


def test_the_latest_pass_says_how_long_the_next_one_lasts(watch: SimpleNamespace) -> None:
    quota = _Quota(100, 10.0)
    watch.now_s += 4.9
    assert not quota.is_met_after(2)
    watch.now_s += 1.0  # the first pass may have loaded something
    assert not quota.is_met_after(2)
    watch.now_s += 3.0
    assert quota.is_met_after(2)
