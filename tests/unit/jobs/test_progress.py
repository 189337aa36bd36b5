"""Stages in words, their time left, and which of their steps a log has a line about."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from autotune.jobs import progress
from autotune.jobs.progress import LogLines, Pace, clock, stage_of, stage_text
from autotune.jobs.records import JobStage
from workers.progress import Stage, Step


@pytest.fixture
def watch(stop_clock: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return stop_clock(progress)


def step(done: int, stage: Stage = Stage.CALIBRATING, total: int | None = 16) -> Step:
    return Step(stage=stage, done=done, total=total)


def test_time_left_follows_the_pace_of_the_stage_itself(watch: SimpleNamespace) -> None:
    pace = Pace()
    assert pace.remaining_s(step(5, Stage.KERNELS)) is None
    watch.now_s += 60.0
    assert pace.remaining_s(step(0)) is None
    watch.now_s += 6.0
    assert pace.remaining_s(step(3)) == pytest.approx(26.0)
    watch.now_s += 26.0
    assert pace.remaining_s(step(16)) == 0.0


def test_a_stage_that_starts_again_has_a_pace_of_its_own(watch: SimpleNamespace) -> None:
    pace = Pace()
    pace.remaining_s(step(0))
    watch.now_s += 100.0
    assert pace.remaining_s(step(8)) == pytest.approx(100.0)
    assert pace.remaining_s(step(0)) is None
    watch.now_s += 1.0
    assert pace.remaining_s(step(1)) == pytest.approx(15.0)


def test_what_is_not_counted_has_no_time_left(watch: SimpleNamespace) -> None:
    pace = Pace()
    pace.remaining_s(step(0, total=None))
    watch.now_s += 5.0
    assert pace.remaining_s(step(3, total=None)) is None


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (JobStage(name="Searching"), "Searching"),
        (JobStage(name="Calibrating", done=3, total=16, remaining_s=12.4), "Calibrating 3/16 · 0:12 left"),
        (JobStage(name="Searching", done=1, total=9, detail="accuracy 2/4"), "Searching 1/9 · accuracy 2/4"),
        (stage_of(Step(stage=Stage.WAITING, detail="process 7 measures there")),
         "Waiting for the device: process 7 measures there"),
        (stage_of(step(3), 61.0), "Calibrating 3/16 · 1:01 left"),
    ],
)  # fmt: skip
def test_stages_are_one_line(stage: JobStage, text: str) -> None:
    assert stage_text(stage) == text


def test_clock_shows_hours_only_if_there_are_some() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599.0, 3600.0)] == ["0:00", "1:00", "59:59", "1:00:00"]


def test_a_log_has_a_line_at_the_start_and_then_after_ten_seconds_and_a_tenth(watch: SimpleNamespace) -> None:
    lines, shown = LogLines(), []
    for done in range(1001):  # a step a second
        if lines.has(JobStage(name="Calibrating", done=done, total=1000)):
            shown.append(done)
        watch.now_s += 1.0
    assert shown == [0, *range(60, 1000, 60)], "a long stage has a line a minute"
    assert lines.has(JobStage(name="Timing kernels", done=0, total=10))
    watch.now_s += 9.0
    assert not lines.has(JobStage(name="Timing kernels", done=9, total=10)), "too early"
    watch.now_s += 1.0
    assert lines.has(JobStage(name="Timing kernels", done=9, total=10))


def test_a_stage_starts_once() -> None:
    lines = LogLines()
    assert [lines.starts(name) for name in ("a", "a", "b", "a")] == [True, False, True, True]
