"""Steps of workers: counted one by one, and passed on now and then."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from workers import progress
from workers.progress import Count, Stage, Step, Throttled, counted


@pytest.fixture
def watch(stop_clock: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return stop_clock(progress)


def step(stage: Stage, done: int, total: int = 1000) -> Step:
    return Step(stage=stage, done=done, total=total)


def test_four_steps_a_second_are_passed_on(watch: SimpleNamespace) -> None:
    passed: list[Step] = []
    report = Throttled(passed.append)
    for index in range(1000):  # ten seconds
        watch.now_s = 100.0 + index / 100.0
        report(step(Stage.CALIBRATING, index))
    assert 36 <= len(passed) <= 41


def test_every_stage_is_passed_on_at_once_and_so_is_one_that_starts_again(watch: SimpleNamespace) -> None:
    passed: list[Step] = []
    report = Throttled(passed.append)
    steps = [step(Stage.LOADING, 0), step(Stage.ACCURACY, 0), step(Stage.ACCURACY, 5), step(Stage.ACCURACY, 0)]
    for each in steps:
        report(each)
    assert passed == [steps[0], steps[1]]
    watch.now_s += 1.0
    report(step(Stage.ACCURACY, 7))
    report(step(Stage.ACCURACY, 0))
    assert [each.done for each in passed] == [0, 0, 7, 0]


def test_items_are_counted_when_they_are_done() -> None:
    steps: list[Step] = []
    seen = [(item, steps[-1].done) for item in counted("abc", Stage.LATENCIES, steps.append)]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert steps == [step(Stage.LATENCIES, done, 3) for done in range(4)]


def test_a_count_starts_at_nothing() -> None:
    steps: list[Step] = []
    count = Count(steps.append, Stage.KERNELS, 2)
    count.advance()
    assert steps == [step(Stage.KERNELS, 0, 2), step(Stage.KERNELS, 1, 2)]
