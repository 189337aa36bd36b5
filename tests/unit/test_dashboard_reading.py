import runpy
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.store.base import ReadStore
from autotune.store.clock import now
from autotune.store.memory import MemoryStore
from autotune.store.records import JobRecord, JobState, TrialRecord
from dashboard.reading import _Watched

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "browser" / "seed.py")))


class SlowStore:
    """Counts how often trials are read, and takes as long as the test says."""

    def __init__(self, store: ReadStore) -> None:
        self._store, self.reads, self.may_read = store, 0, threading.Event()
        self.may_read.set()

    def trials(self, job_id: str) -> list[TrialRecord]:
        self.reads += 1
        assert self.may_read.wait(10)
        return self._store.trials(job_id)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    seed.record_job(store, "0001", seed.SCENARIOS["running"], now())
    return store


@pytest.fixture
def slow(store: MemoryStore) -> SlowStore:
    return SlowStore(store)


@pytest.fixture
def watched(slow: SlowStore) -> _Watched:
    return _Watched(slow)  # type: ignore[arg-type]


def _moved(job: JobRecord, **changes: object) -> JobRecord:
    return replace(job, version=job.version + 1, **changes)  # type: ignore[arg-type]


def test_a_job_is_read_once_until_it_changes(store: MemoryStore, slow: SlowStore, watched: _Watched) -> None:
    job = store.job("0001")
    assert watched.progress(job) is watched.progress(job)
    assert slow.reads == 1


def test_a_running_job_is_not_read_all_the_time(
    store: MemoryStore, slow: SlowStore, watched: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("dashboard.reading.time.monotonic", lambda: clock.__setitem__(0, clock[0] + 0.5) or clock[0])
    job = store.job("0001")
    first = watched.progress(job)  # takes half a second of this clock
    assert watched.progress(_moved(job)) is first
    clock[0] += 5.0
    assert watched.progress(_moved(job)) is not first
    assert slow.reads == 2


def test_a_job_that_ended_is_never_shown_as_it_was(store: MemoryStore, slow: SlowStore, watched: _Watched) -> None:
    job = store.job("0001")
    first = watched.progress(job)
    watched._next_at = float("inf")
    seed.record_next(store, "0001")
    ended = watched.progress(_moved(job, state=JobState.FINISHED))
    assert len(ended.trials) == len(first.trials) + 1


def test_nobody_waits_for_somebody_elses_read(store: MemoryStore, slow: SlowStore, watched: _Watched) -> None:
    job = store.job("0001")
    first = watched.progress(job)
    watched._next_at = 0.0
    slow.may_read.clear()
    reader = threading.Thread(target=watched.progress, args=(_moved(job),))
    reader.start()
    while slow.reads < 2:
        pass
    assert watched.progress(_moved(job)) is first
    slow.may_read.set()
    reader.join(10)
    assert watched.progress(_moved(job)).version == job.version + 1
    assert slow.reads == 2
