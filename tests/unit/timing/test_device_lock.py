"""Whoever asks for a device gets it, however often others do."""

import multiprocessing
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from workers.timing import device_lock
from workers.timing.device_lock import DeviceLock


@pytest.mark.parametrize(
    ("theirs", "ours"), [("exclusive", "shared"), ("exclusive", "exclusive"), ("shared", "exclusive")]
)
def test_a_process_that_asks_again_at_once_waits_for_earlier_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: str, ours: str
) -> None:
    monkeypatch.setattr(device_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    context = multiprocessing.get_context("fork")
    turns, stop = context.Value("i", 0), context.Event()
    # Two of them, so that one always shares the device when the other lets go.
    greedy = [context.Process(target=_ask_again_and_again, args=(theirs, turns, stop), daemon=True) for _ in range(2)]
    for process in greedy:
        process.start()
    try:
        while turns.value < 10:
            time.sleep(0.001)
        before = turns.value
        for _ in range(20):
            with getattr(DeviceLock("cpu"), ours)():
                pass
        assert turns.value - before < 20 * 20, "a search of 2 ms a turn was held up for longer than it took"
    finally:
        stop.set()
        for process in greedy:
            process.join()


def _ask_again_and_again(kind: str, turns: "Synchronized[int]", stop: Event) -> None:
    while not stop.is_set():
        with getattr(DeviceLock("cpu"), kind)():
            time.sleep(0.002)
            with turns.get_lock():
                turns.value += 1
