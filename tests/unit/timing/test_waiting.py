"""What is told and counted while another process has the device."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.progress import Stage, Step
from workers.timing import device_lock
from workers.timing.device_lock import DeviceLock
from workers.timing.lock_holders import command


@pytest.fixture(autouse=True)
def own_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_lock.tempfile, "gettempdir", lambda: str(tmp_path))


@contextmanager
def held(folder: Path, kind: str, seconds: float) -> Iterator[int]:
    """Have another process hold the device for so long, and return its id."""
    marker = folder / f"held-{time.monotonic_ns()}"
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(kind, seconds, marker), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        while not marker.exists():
            time.sleep(0.01)
        yield process.pid
    finally:
        process.join()


def _hold(kind: str, seconds: float, marker: Path) -> None:
    with getattr(DeviceLock("cpu"), kind)():
        marker.touch()
        time.sleep(seconds)


@pytest.mark.parametrize(("theirs", "ours"), [("exclusive", "shared"), ("shared", "exclusive")])
def test_waiting_is_reported_within_two_seconds_with_the_holder_and_counted(
    tmp_path: Path, theirs: str, ours: str
) -> None:
    told: list[tuple[float, Step]] = []
    started = time.monotonic()
    lock = DeviceLock("cpu", lambda step: told.append((time.monotonic() - started, step)))
    with held(tmp_path, theirs, 2.5) as pid, getattr(lock, ours)():
        waited_s = time.monotonic() - started
    after_s, first = told[0]
    assert after_s < 2.0
    assert first.stage is Stage.WAITING
    assert first.detail.startswith(f"process {pid} (")
    assert first.detail.endswith(") measures there")
    assert 0.0 < lock.waited_s <= waited_s
    assert waited_s - lock.waited_s < 0.5


def test_all_holders_are_named(tmp_path: Path) -> None:
    told: list[Step] = []
    with held(tmp_path, "shared", 2.5) as one, held(tmp_path, "shared", 2.5) as other:
        with DeviceLock("cpu", told.append).exclusive():
            pass
        first, second = sorted((one, other))
    assert told[0].detail.startswith("processes ")
    assert told[0].detail.index(f"{first} (") < told[0].detail.index(f"{second} (")
    assert told[0].detail.endswith(") measure there")


def test_a_free_device_is_taken_without_a_word() -> None:
    told: list[Step] = []
    lock = DeviceLock("cpu", told.append)
    with lock.exclusive():
        pass
    with lock.shared():
        pass
    assert (told, lock.waited_s) == ([], 0.0)


def test_unknown_holders_are_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_lock, "holders", lambda path: [])
    told: list[Step] = []
    with held(tmp_path, "exclusive", 1.5), DeviceLock("cpu", told.append).exclusive():
        pass
    assert told[0].detail == "another process measures there"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["script.py", "run", "/some/where/job.yaml", "more"], "script.py run job.yaml"),
        (["script.py", "watch", "--token", "secret"], "script.py watch"),
        (["script.py", "postgresql://me:secret@host"], "script.py"),
    ],
)
def test_commands_are_short_and_reveal_no_secrets(tmp_path: Path, words: list[str], shown: str) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('ready', flush=True); input()")
    arguments = [sys.executable, str(script), *words[1:]]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert command(process.pid) == shown
        finally:
            process.kill()


def test_a_process_that_is_gone_has_no_command() -> None:
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    assert command(process.pid) == ""
