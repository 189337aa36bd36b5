"""The contract of ``autotune.store.base.Store``: pages, tallies, statistics and tokens, over every implementation."""

from datetime import UTC, datetime, timedelta

import pytest

from autotune.errors import ConflictError, NotFoundError
from autotune.jobs import lifecycle
from autotune.jobs.records import (
    FrontRecord,
    JobRecord,
    JobState,
    Scope,
    Statistics,
    Tally,
    TokenRecord,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.timestamps import event, now
from autotune.store.base import Store

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def add_job(store: Store, job_id: str, *, created_at: datetime = AT, state: JobState = JobState.QUEUED) -> JobRecord:
    spec = {"search": {"trials": 9}, "workers": {"count": 1, "cpus": None, "gpus": 0}}
    record = JobRecord(
        id=job_id,
        name=job_id,
        task="t",
        document=spec,
        state=state,
        created_at=created_at,
        updated_at=AT,
        served=True,
    )
    return store.create_job(record)


def result(job_id: str, number: int, *, front: tuple[int, ...] = (), final: bool = False) -> TrialResult:
    trial = TrialRecord(
        job_id=job_id,
        number=number,
        kind=TrialKind.FINAL if final else TrialKind.SEARCH,
        label=None,
        state=TrialState.REJECTED if number % 2 else TrialState.COMPLETE,
        choices={"a": "fp32", "b": "bf16"},
        key=f"{number:032x}",
        finished_at=AT,
    )
    return TrialResult(
        trial=trial,
        front=FrontRecord(trials=number, members=front, hypervolume=1.0) if front else None,
        events=(event("measured", str(number)),),
    )


def test_jobs_of_one_instant_are_paged_too(store: Store) -> None:
    for job_id in ("b", "a", "c"):
        add_job(store, job_id)
    add_job(store, "old", created_at=AT - timedelta(microseconds=1))
    add_job(store, "new", created_at=AT + timedelta(microseconds=1), state=JobState.PAUSED)
    ids = ["new", "c", "b", "a", "old"]
    assert [job.id for job in store.jobs()] == ids
    assert [[job.id for job in store.jobs(after=after, limit=2)] for after in ids] == [
        ["c", "b"], ["b", "a"], ["a", "old"], ["old"], [],
    ]  # fmt: skip
    assert [job.id for job in store.jobs(state=JobState.PAUSED)] == ["new"]
    with pytest.raises(NotFoundError, match="'gone'"):
        store.jobs(after="gone")


def test_versions_say_which_jobs_moved(store: Store) -> None:
    assert store.versions() == {}
    add_job(store, "a")
    add_job(store, "b", created_at=AT + timedelta(microseconds=1))
    before = store.versions()
    assert list(before) == ["b", "a"]
    store.record([result("a", 0)], epoch=0)
    after = store.versions()
    assert after == {job.id: job.version for job in store.jobs()}
    assert (after["b"], after["a"]) == (before["b"], before["a"] + 1)


def test_numbers_are_those_of_the_trials_recorded(store: Store) -> None:
    add_job(store, "a")
    assert store.numbers("a") == []
    store.record([result("a", 3)], epoch=0)
    store.record([result("a", number) for number in (0, 2)], epoch=0)
    assert store.numbers("a") == [0, 2, 3]
    with pytest.raises(NotFoundError, match="'gone'"):
        store.numbers("gone")


def test_trials_and_events_are_read_in_part(store: Store) -> None:
    add_job(store, "a")
    store.record([result("a", number) for number in (0, 1, 2, 5)], epoch=0)
    every = store.trials("a")
    assert [trial.number for trial in every] == [0, 1, 2, 5]
    assert store.trials("a", after=0, limit=2) == every[1:3]
    assert store.trials("a", numbers=(5, 0, 7)) == [every[0], every[3]]
    assert store.trials("a", numbers=(5, 0), after=0, limit=5) == [every[3]]
    assert store.trials("a", numbers=()) == []
    assert store.trials("a", after=5) == []
    assert [event.message for event in store.events("a", start=2)] == ["2", "5"]
    assert store.events("a", start=9) == []
    with pytest.raises(NotFoundError):
        store.trials("gone", after=3)
    with pytest.raises(NotFoundError):
        store.events("gone", start=3)


def test_tallies_count_what_was_searched(store: Store) -> None:
    for job_id in ("a", "b", "c"):
        add_job(store, job_id)
    fronts = [(0, (0,)), (1, (0, 1)), (2, ())]
    store.record([result("a", number, front=front) for number, front in fronts], epoch=0)
    store.record([result("a", 3, front=(1, 3), final=True)], epoch=0)
    store.record([result("b", 0, front=(0,))], epoch=0)
    assert store.tallies(["a", "b", "c", "gone"]) == {
        "a": Tally(searched=3, front=(1, 3)),
        "b": Tally(searched=1, front=(0,)),
        "c": Tally(),
        "gone": Tally(),
    }
    assert store.tallies([]) == {}


def test_statistics_cover_all_jobs(store: Store) -> None:
    assert store.statistics() == Statistics(jobs={}, trials={}, takeovers=0, oldest_wait_s=0.0)
    add_job(store, "a", created_at=now() - timedelta(hours=2))
    add_job(store, "b", created_at=now() - timedelta(hours=1))
    add_job(store, "c", state=JobState.FAILED, created_at=AT)
    store.record([result("a", number) for number in range(3)], epoch=0)
    for driver in ("h:1:2:x", "h:2:3:x"):
        store.change_job("a", lifecycle.claimed(driver, lease_s=-1.0))
    found = store.statistics()
    assert found.jobs == {JobState.RUNNING: 1, JobState.QUEUED: 1, JobState.FAILED: 1}
    assert found.trials == {TrialState.COMPLETE: 2, TrialState.REJECTED: 1}
    assert found.takeovers == 1
    assert 3600 <= found.oldest_wait_s < 3660


def test_tokens_come_back_and_are_revoked_once(store: Store) -> None:
    first = TokenRecord(id="1", name="é", scope=Scope.ADMIN, created_at=AT, expires_at=AT + timedelta(days=1))
    second = TokenRecord(id="2", name="é", scope=Scope.VIEWER, created_at=AT + timedelta(seconds=1))
    store.add_token(second, "b" * 64)
    store.add_token(first, "a" * 64)
    assert store.tokens() == [first, second]
    assert store.token("1") == (first, "a" * 64)
    assert store.token("3") is None
    with pytest.raises(ConflictError, match="'1' already"):
        store.add_token(first, "c" * 64)
    revoked = store.revoke_token("1")
    assert revoked.revoked_at is not None
    assert store.revoke_token("1") == revoked
    assert store.token("1") == (revoked, "a" * 64)
    with pytest.raises(NotFoundError, match="'3'"):
        store.revoke_token("3")
