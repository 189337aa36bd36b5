import multiprocessing
import os
import time
from pathlib import Path

import pytest

from workers import waiting
from workers.waiting import waited_ms


def _busy() -> None:
    while True:
        pass


def test_waiting_for_a_processor_that_another_process_has_is_counted() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    other = multiprocessing.get_context("fork").Process(target=_busy, daemon=True)
    other.start()
    try:
        before, spent = waited_ms(), time.thread_time()
        while time.thread_time() < spent + 0.1:
            pass
        assert waited_ms() - before > 20.0
    finally:
        other.kill()
        other.join()
        os.sched_setaffinity(0, allowed)


def test_nobody_waits_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_THREADS", Path("/nowhere"))
    assert waited_ms() == 0.0
