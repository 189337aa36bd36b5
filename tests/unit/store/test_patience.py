"""What happens to a call while its database is away, busy or full: it waits, and then is done once or not at all."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from autotune.client.actions import submit
from autotune.errors import StoreError, StoreUnavailableError
from autotune.jobs.records import TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import event, now
from autotune.store.base import Store
from autotune.store.engine import make_engine, parse_url
from autotune.store.open import attach_store, migrate, open_store
from autotune.store.sql import SqlStore
from workers.measurement import LatencySamples

SPEC = JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}})


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def result(job_id: str, number: int) -> TrialResult:
    trial = TrialRecord(
        job_id=job_id, number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE,
        choices={"fc": "fp32"}, key=f"{number:032x}", finished_at=now(),
    )  # fmt: skip
    latency = LatencySamples(batch_size=1, candidate_ms=np.ones(2000), reference_ms=np.ones(400))
    return TrialResult(trial=trial, latency=(latency,), events=(event("recorded", str(number)),), elapsed_s=1.0)


def wait_for(check: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def waits(call: Future[Any], seconds: float = 1.0) -> bool:
    """Whether a call is still on its way after a while."""
    try:
        call.result(timeout=seconds)
    except TimeoutError:
        return True
    return False


def assert_whole(store: Store, job_id: str, count: int) -> None:
    """Every trial is there once with everything that belongs to it, and nothing of any other."""
    assert [trial.number for trial in store.trials(job_id)] == list(range(count))
    assert [told.message for told in store.events(job_id)] == [str(number) for number in range(count)]
    assert store.job(job_id).elapsed_s == count
    assert all(len(store.latency(job_id, number)) == 1 for number in range(count))
    assert store.latency(job_id, count) == ()


def test_a_call_waits_for_postgresql_to_come_back(mortal_postgres: Any, background: ThreadPoolExecutor) -> None:
    store = open_store(mortal_postgres.url, patience_s=60.0)
    job = submit(store, SPEC)
    store.record([result(job.id, 0)], epoch=0)
    mortal_postgres.kill()
    writing = background.submit(store.record, [result(job.id, 1)], epoch=0)
    reading = background.submit(store.job, job.id)
    assert waits(writing)
    assert waits(reading, 0.1)
    mortal_postgres.start()
    writing.result(timeout=30.0)
    assert reading.result(timeout=30.0).id == job.id
    assert_whole(store, job.id, 2)
    store.close()


def test_patience_with_postgresql_ends(mortal_postgres: Any) -> None:
    store = open_store(mortal_postgres.url, patience_s=0.5)
    job = submit(store, SPEC)
    mortal_postgres.kill()
    started_at = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"^the database postgresql\+psycopg://.* failed: ") as caught:
        store.job(job.id)
    assert 0.5 <= time.monotonic() - started_at < 20.0
    assert "\n" not in str(caught.value)
    store.close()


def test_a_wrong_statement_is_not_tried_again(sqlite_url: str) -> None:
    store = open_store(sqlite_url, patience_s=60.0)
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as other:
        other.execute("DROP TABLE probes")
    started_at = time.monotonic()
    with pytest.raises(StoreError, match="no such table: probes") as caught:
        store.probes("k")
    assert not isinstance(caught.value, StoreUnavailableError)
    assert time.monotonic() - started_at < 20.0
    store.close()


class Disk:
    """The space a SQLite database may take, which only grows when there is more."""

    def __init__(self, engine: sa.Engine) -> None:
        self.pages = 1 << 30
        sa.event.listen(engine, "checkout", self._limit)

    def _limit(self, connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {self.pages}")


def test_a_full_disk_is_waited_for_and_nothing_is_half_written(
    sqlite_url: str, background: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(sqlite_url)
    engine = make_engine(parse_url(sqlite_url), read_only=False)
    disk, store = Disk(engine), SqlStore(engine, patience_s=120.0)
    job = submit(store, SPEC)
    disk.pages = 120

    def write() -> None:
        for number in range(50):
            store.record([result(job.id, number)], epoch=0)

    writing = background.submit(write)
    wait_for(lambda: "database or disk is full" in caplog.text)
    seen = len(store.trials(job.id))
    assert waits(writing, 0.5)
    assert 0 < seen < 50
    assert_whole(store, job.id, seen)
    disk.pages = 1 << 30
    writing.result(timeout=60.0)
    assert_whole(store, job.id, 50)
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.close()


def test_patience_with_a_full_disk_ends(sqlite_url: str) -> None:
    migrate(sqlite_url)
    engine = make_engine(parse_url(sqlite_url), read_only=False)
    disk, store = Disk(engine), SqlStore(engine, patience_s=0.2)
    job = submit(store, SPEC)
    disk.pages = 1
    with pytest.raises(StoreUnavailableError, match="database or disk is full"):
        store.record([result(job.id, number) for number in range(20)], epoch=0)
    assert_whole(store, job.id, 0)
    store.close()


def test_writers_of_one_file_wait_for_each_other(sqlite_url: str, background: ThreadPoolExecutor) -> None:
    """No user reads that the database is locked, however many write, and although one takes its time."""
    stores = [open_store(sqlite_url) for _ in range(8)]
    jobs = [submit(store, SPEC) for store in stores]
    slow = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    slow.execute("BEGIN IMMEDIATE")

    def write(store: Store, job_id: str) -> None:
        for number in range(20):
            store.record([result(job_id, number)], epoch=0)
            submit(store, SPEC)

    writing = [background.submit(write, store, job.id) for store, job in zip(stores, jobs, strict=True)]
    assert waits(writing[0])
    slow.execute("COMMIT")
    slow.close()
    for one in writing:
        one.result(timeout=120.0)
    for store, job in zip(stores, jobs, strict=True):
        assert_whole(store, job.id, 20)
        store.close()


def test_a_store_with_many_threads_runs_out_of_no_connections(
    postgres_url: str, background: ThreadPoolExecutor
) -> None:
    store = open_store(postgres_url)
    barrier = threading.Barrier(40)

    def work() -> str:
        barrier.wait(30.0)
        return submit(store, SPEC).id

    with ThreadPoolExecutor(40) as many:
        ids = [one.result() for one in [many.submit(work) for _ in range(40)]]
    assert {job.id for job in store.jobs()} == set(ids)
    store.close()


def test_a_driver_that_starts_while_postgresql_is_down_waits_for_it(
    mortal_postgres: Any, background: ThreadPoolExecutor
) -> None:
    store = open_store(mortal_postgres.url)
    job = submit(store, SPEC)
    mortal_postgres.kill()
    attached = attach_store(mortal_postgres.url, patience_s=60.0)
    reading = background.submit(attached.job, job.id)
    assert waits(reading)
    mortal_postgres.start()
    assert reading.result(timeout=30.0) == job
    for opened in (store, attached):
        opened.close()
