import runpy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import streamlit as st

from autotune.errors import NotFoundError
from autotune.jobs.budget import searched
from autotune.jobs.front import without_superseded
from autotune.jobs.records import JobRecord, JobStage, JobState, TrialKind, TrialRecord, TrialResult
from autotune.jobs.timestamps import now
from autotune.store.base import ReadStore, Store
from autotune.store.in_memory import MemoryStore
from autotune.store.open import open_store
from dashboard import queries
from dashboard.queries import _Jobs, _Watched
from dashboard.tables.trials import trial_frame

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))


class SlowStore:
    """Counts how often trials are read, and takes as long as the test says."""

    def __init__(self, store: ReadStore) -> None:
        self._store, self.reads, self.may_read = store, 0, threading.Event()
        self.read: list[int] = []
        self.may_read.set()

    def trials(self, job_id: str, numbers: Sequence[int] | None = None) -> list[TrialRecord]:
        self.reads += 1
        assert self.may_read.wait(60)
        found = self._store.trials(job_id, numbers=numbers)
        self.read += [trial.number for trial in found]
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    seed.record_job(store, "0001", seed.SCENARIOS["running"], now())
    return store


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    monkeypatch.setenv("AUTOTUNE_DATABASE", url)
    store = open_store(url)
    yield store
    store.close()
    st.cache_resource.clear()


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
    ticking = SimpleNamespace(monotonic=lambda: clock.__setitem__(0, clock[0] + 0.5) or clock[0])
    monkeypatch.setattr("dashboard.queries.time", ticking)  # of this module alone: other threads ask for the time too
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


def test_a_trial_is_read_once_and_stands_in_its_place(store: MemoryStore, slow: SlowStore, watched: _Watched) -> None:
    job = replace(store.job("0001"), state=JobState.PAUSED)  # nothing is put off
    first = watched.progress(job)
    late = replace(first.trials[-1], number=first.trials[-1].number + 2, key="2" * 32)
    early = replace(late, number=late.number - 1, key="1" * 32)
    for version, trial in ((1, late), (2, early)):  # the one that was asked for first ends last
        store.record([TrialResult(trial=trial)], epoch=0)
        found = watched.progress(replace(job, version=job.version + version))
    assert found.trials == store.trials("0001")
    assert slow.read == [*(trial.number for trial in first.trials), late.number, early.number]
    pd.testing.assert_frame_equal(found.frame, trial_frame(without_superseded(found.trials)))


def test_a_trial_measured_again_takes_the_place_of_the_first(store: MemoryStore, watched: _Watched) -> None:
    job = replace(store.job("0001"), state=JobState.PAUSED)
    first = watched.progress(job)
    chosen = next(trial for trial in first.trials if trial.feasible)
    final = replace(chosen, number=first.trials[-1].number + 1, kind=TrialKind.FINAL)
    store.record([TrialResult(trial=final)], epoch=0)
    found = watched.progress(_moved(job))
    assert {*first.frame["number"]} - {*found.frame["number"]} == {chosen.number}
    assert found.frame["number"].iloc[-1] == final.number


def test_only_jobs_that_moved_are_read_again(store: MemoryStore) -> None:
    seed.record_job(store, "0002", seed.SCENARIOS["finished"], now())
    jobs = _Jobs(store)
    before = {job.id: job for job in jobs.all()}
    seed.record_next(store, "0001")
    after = {job.id: job for job in jobs.all()}
    assert after["0002"] is before["0002"]
    assert after["0001"] == store.job("0001") == jobs.one("0001")
    with pytest.raises(NotFoundError, match="'gone'"):
        jobs.one("gone")


def test_stages_are_read_though_no_version_moves(store: MemoryStore) -> None:
    jobs = _Jobs(store)
    job = jobs.one("0001")
    stage = JobStage(name="Calibrating", done=3, total=16)
    store.record_stage("0001", stage, epoch=job.epoch)
    assert jobs.one("0001").stage == stage
    assert jobs.one("0001").version == job.version


def test_a_summary_counts_what_a_whole_read_counts(database: Store) -> None:
    seed.record_job(database, "0001", seed.SCENARIOS["finished"], now())
    job = database.job("0001")
    progress, summary = queries.progress(job), queries.summary(job)
    assert summary.searched == searched(progress.trials)
    assert [trial.number for trial in summary.front] == sorted(progress.members)


def test_nobody_waits_for_somebody_elses_read(store: MemoryStore, slow: SlowStore, watched: _Watched) -> None:
    job = store.job("0001")
    first = watched.progress(job)
    watched._next_at = 0.0
    slow.may_read.clear()
    reader = threading.Thread(target=watched.progress, args=(_moved(job),))
    reader.start()
    try:
        while slow.reads < 2:
            pass
        assert watched.progress(_moved(job)) is first
    finally:
        slow.may_read.set()
        reader.join(60)
    assert watched.progress(_moved(job)).version == job.version + 1
    assert slow.reads == 2
