import os
import subprocess
import time
from pathlib import Path

import pytest

from workers.timing import cpu_waits
from workers.timing.cpu_waits import waited_ms


def test_waiting_for_a_processor_that_another_process_has_is_counted() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as other:
            try:
                before, spent = waited_ms(), time.thread_time()
                while time.thread_time() < spent + 0.1:
                    pass
                assert waited_ms() - before > 20.0
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, allowed)


def test_no_wait_is_counted_where_the_system_does_not_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_waits, "_THREADS", Path("/nowhere"))
    assert waited_ms() == 0.0
