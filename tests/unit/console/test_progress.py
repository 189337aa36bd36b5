"""What people see while they wait: lines in a log, a bar on a terminal."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from autotune.console import output, progress
from autotune.console.progress import ConsoleListener
from autotune.jobs import progress as stages
from autotune.jobs.progress import Progress
from autotune.jobs.records import JobStage

CALIBRATING = JobStage(name="Calibrating", done=3, total=16, remaining_s=12.0)
PROGRESS = Progress(done=3, budget=9, elapsed_s=1.0, remaining_s=60.0, best=None, front_size=2)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(output, "err", Console(file=written, width=200))
    monkeypatch.setattr(progress, "is_interactive", lambda: False)
    return written


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=written, force_terminal=True, width=120, color_system=None))
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    return written


def test_a_log_has_a_line_per_stage(log: io.StringIO) -> None:
    with ConsoleListener("latency_p50_ms") as listener:
        listener.stage("Starting workers")
        for done in range(17):
            listener.step(JobStage(name="Calibrating", done=done, total=16))
        listener.step(JobStage(name="Timing kernels", total=3))
    assert log.getvalue().splitlines() == ["Starting workers", "Calibrating 0/16", "Timing kernels 0/3"]


def test_a_log_of_a_search_has_lines_of_trials_and_of_waiting_only(
    log: io.StringIO, stop_clock: Callable[..., SimpleNamespace]
) -> None:
    watch = stop_clock(stages)
    with ConsoleListener("latency_p50_ms") as listener:
        listener.stage("Searching")
        listener.trial(PROGRESS)
        watch.now_s += 3600.0  # so that any other stage would have another line
        listener.step(JobStage(name="Searching", done=3, total=9, detail="latency 1/10"))
        listener.step(JobStage(name="Waiting for the device: process 7 measures there"))
    assert log.getvalue().splitlines() == [
        "Searching",
        "3/9 · none feasible yet · front 2 · 1:00 left",
        "Waiting for the device: process 7 measures there",
    ]


def test_a_terminal_shows_count_and_time_left_of_the_stage(terminal: io.StringIO) -> None:
    with ConsoleListener("latency_p50_ms") as listener:
        listener.stage("Starting [workers]")
        listener.step(CALIBRATING)
    shown = terminal.getvalue()
    assert "Starting" in shown
    assert "Calibrating" in shown
    assert "3/16 · 0:12 left" in shown


def test_a_terminal_keeps_the_trials_of_a_search_beside_its_steps(terminal: io.StringIO) -> None:
    with ConsoleListener("latency_p50_ms") as listener:
        listener.stage("Searching")
        listener.trial(PROGRESS)
        listener.step(JobStage(name="Searching", done=3, total=9, detail="latency [1/10]", remaining_s=60.0))
    last = terminal.getvalue().rpartition("Searching")[2]
    assert "latency [1/10]" in last
    assert "3/9 · none feasible yet · front 2 · 1:00 left" in last
