"""The part of the store's contract that makes a queue of it: submissions, claims, leases, orders, fencing."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autotune.client.actions import cancel, change_plan, clone, pause, resume, submit
from autotune.errors import ConflictError, LeaseLostError, NotFoundError
from autotune.jobs.lifecycle import Change, Transition, claimed, released, settled, with_fields
from autotune.jobs.records import (
    Directions,
    FrontRecord,
    HeldJob,
    JobRecord,
    JobStage,
    JobState,
    Order,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import event, now
from autotune.store.base import Store
from workers.measurement import Environment
from workers.setup import Calibration, ModelDescription

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: A lease that has run out as soon as it is given.
OVER = -1.0
STAGE = JobStage(name="Calibrating", done=3, total=16, detail="of sixteen", remaining_s=1.5)


def spec(**search: Any) -> JobSpec:
    workers = {"count": 3, "cpus": 0.5, "gpus": 0.25}
    return JobSpec.parse(
        {"name": "x", "task": {"name": "digits-cnn"}, "search": {"trials": 9} | search, "workers": workers}
    )


def job(job_id: str = "a1", **changes: Any) -> JobRecord:
    record = JobRecord(
        id=job_id, name="x", task="digits-cnn", document=spec().dump(), state=JobState.QUEUED, created_at=AT,
        updated_at=AT, served=True,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def result(number: int, job_id: str = "a1", **changes: Any) -> TrialResult:
    trial = TrialRecord(
        job_id=job_id, number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE,
        choices={"fc": "fp32"}, key=f"{number:032x}", finished_at=AT,
    )  # fmt: skip
    return TrialResult(trial=trial, **changes)


def claim(store: Store, driver: str = "me", lease_s: float = 60.0) -> JobRecord | None:
    return store.claim_next(claimed(driver, lease_s))


def description(kind: str) -> ModelDescription:
    environment = Environment(hardware="cpu", kind=kind, backend="x86", threads=2, load=0.5, versions={})
    return ModelDescription(
        fingerprint="f" * 64, layers=(), refusals={}, layer_bytes={}, other_bytes=0,
        calibration=Calibration(ranges={}, samples=64, seconds=0.5), environment=environment,
    )  # fmt: skip


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what ``count`` threads return that start together; their errors are values too."""

    def guarded(number: int) -> Any:
        try:
            return work(number)
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(guarded, range(count)))


def everything(store: Store, job_id: str = "a1") -> tuple[Any, ...]:
    return store.job(job_id), store.trials(job_id), store.fronts(job_id), store.events(job_id)


def test_the_same_key_and_request_are_the_same_job(store: Store) -> None:
    first = submit(store, spec(), key="k")
    assert submit(store, spec(), key="k") == first
    assert submit(store, spec(), key="k", owner="another").id != first.id, "keys of two users have nothing in common"
    assert submit(store, spec()).id != first.id
    assert len(store.jobs()) == 3


def test_a_key_still_names_its_job_when_that_has_changed(store: Store) -> None:
    first = submit(store, spec(), key="k")
    cancel(store, first.id)
    again = submit(store, spec(), key="k", most_live=1)
    assert (again.id, again.state) == (first.id, JobState.CANCELLED)


@pytest.mark.parametrize("other", [{"spec": spec(trials=10)}, {"priority": 1}])
def test_a_key_for_another_request_is_a_mistake(store: Store, other: dict[str, Any]) -> None:
    first = submit(store, spec(), key="k")
    with pytest.raises(
        ConflictError, match=f"the key 'k' was already used for job {first.id}, which is a different request"
    ):
        submit(store, **{"spec": spec(), "key": "k"} | other)
    assert store.jobs() == [first]


def test_clients_that_submit_one_key_at_once_make_one_job(store: Store) -> None:
    jobs = at_once(32, lambda _: submit(store, spec(), key="k"))
    assert [found.id for found in jobs] == [store.jobs()[0].id] * 32
    assert len(store.jobs()) == 1


def test_clients_that_ask_for_different_things_under_one_key_get_one_job_or_a_conflict(store: Store) -> None:
    found = at_once(8, lambda number: submit(store, spec(trials=9 + number), key="k"))
    assert Counter(type(one) for one in found) == {JobRecord: 1, ConflictError: 7}
    assert len(store.jobs()) == 1


def test_a_user_has_a_number_of_live_jobs_at_most(store: Store) -> None:
    jobs = [submit(store, spec(), owner="ann", most_live=2) for _ in range(2)]
    with pytest.raises(ConflictError, match="may have 2 queued or running jobs, but ann has 2"):
        submit(store, spec(), owner="ann", most_live=2)
    submit(store, spec(), owner="bob", most_live=2)
    cancel(store, jobs[0].id)
    submit(store, spec(), owner="ann", most_live=2)
    with pytest.raises(ConflictError, match="ann has 2"):
        clone(store, jobs[0], owner="ann", most_live=2)
    with pytest.raises(ConflictError, match="ann has 2"):
        resume(store, jobs[0].id, most_live=2)
    assert resume(store, jobs[1].id, most_live=2).state is JobState.QUEUED  # it waits already


def test_a_user_who_submits_many_jobs_at_once_stays_below_the_limit(store: Store) -> None:
    found = at_once(12, lambda _: submit(store, spec(), owner="ann", most_live=3))
    assert Counter(type(one) for one in found) == {JobRecord: 3, ConflictError: 9}


def test_a_job_that_was_recorded_before_its_answer_was_lost_is_no_conflict(store: Store) -> None:
    store.create_job(job())
    assert store.create_job(job()) == store.job("a1")


def test_a_clone_asks_for_the_same(store: Store) -> None:
    first = submit(store, spec(), priority=3, key="k")
    second = clone(store, store.job(first.id), owner="ann")
    assert second.id != first.id
    assert (second.document, second.priority, second.owner, second.state) == (first.document, 3, "ann", JobState.QUEUED)


def test_a_change_that_fails_changes_nothing(store: Store) -> None:
    store.create_job(job())

    def broken(before: JobRecord, at: datetime) -> Change:
        raise ConflictError("no")

    before = everything(store)
    with pytest.raises(ConflictError, match="no"):
        store.change_job("a1", broken)
    assert everything(store) == before


def test_nothing_changed_is_not_counted(store: Store) -> None:
    store.create_job(job())
    before = store.job("a1")
    assert store.change_job("a1", lambda record, at: Change(job=record)) == before
    assert store.job("a1") == before


def test_changes_at_once_all_count(store: Store) -> None:
    store.create_job(job())

    def raise_priority(before: JobRecord, at: datetime) -> Change:
        after = dataclasses.replace(before, priority=before.priority + 1)
        return Change(job=after, events=(event("raised", str(after.priority)),))

    at_once(16, lambda _: store.change_job("a1", raise_priority))
    assert (store.job("a1").priority, store.job("a1").version) == (16, 16)
    assert [told.message for told in store.events("a1")] == [str(number) for number in range(1, 17)]


def test_time_is_that_of_the_database(store: Store) -> None:
    store.create_job(job())
    seen: list[datetime] = []

    def look(before: JobRecord, at: datetime) -> Change:
        seen.append(at)
        return Change(job=before)

    store.change_job("a1", look)
    assert abs(seen[0] - now()) < timedelta(seconds=5)
    assert seen[0].tzinfo is not None


def test_jobs_are_claimed_by_priority_then_age(store: Store) -> None:
    for job_id, priority, hours in (("late", 0, 2), ("early", 0, 1), ("urgent", 5, 3), ("lazy", -1, 0)):
        store.create_job(job(job_id, priority=priority, created_at=AT + timedelta(hours=hours)))
    claims = [claim(store) for _ in range(5)]
    assert [found and found.id for found in claims] == ["urgent", "early", "late", "lazy", None]


def test_a_claim_is_recorded(store: Store) -> None:
    store.create_job(job())
    found = claim(store, "me")
    assert found == store.job("a1")
    assert found is not None
    assert (found.state, found.driver, found.epoch, found.version) == (JobState.RUNNING, "me", 1, 1)
    assert found.leased_until is not None
    assert timedelta(seconds=50) < found.leased_until - now() < timedelta(seconds=65)
    assert [told.kind for told in store.events("a1")] == ["started"]


@pytest.mark.parametrize("changes", [{"served": False}, *({"state": state} for state in JobState if not state.is_live)])
def test_jobs_that_do_not_wait_are_not_claimed(store: Store, changes: dict[str, Any]) -> None:
    store.create_job(job(**changes))
    assert claim(store) is None


def test_a_job_whose_lease_ran_out_is_taken_over(store: Store) -> None:
    store.create_job(job())
    claim(store, "old", OVER)
    found = claim(store, "new")
    assert found is not None
    assert (found.driver, found.epoch) == ("new", 2)
    assert claim(store, "third") is None
    assert [told.kind for told in store.events("a1")] == ["started", "taken_over"]


@pytest.mark.parametrize("order", Order)
def test_an_order_that_a_lost_driver_did_not_carry_out_is_carried_out_by_the_next(store: Store, order: Order) -> None:
    store.create_job(job())
    old = claim(store, "old")
    assert old is not None
    {Order.PAUSE: pause, Order.CANCEL: cancel}[order](store, "a1")
    store.renew("a1", epoch=1, lease_s=OVER)
    found = claim(store, "new")
    assert found is not None
    assert (found.state, found.order, found.epoch) == (order.state, None, 2)
    assert claim(store, "new") is None
    with pytest.raises(LeaseLostError):
        store.record([result(0)], epoch=1)


def test_controllers_that_look_at_once_get_different_jobs(store: Store) -> None:
    for number in range(20):
        store.create_job(job(f"j{number:02}", created_at=AT + timedelta(seconds=number)))
    found = at_once(12, lambda number: claim(store, f"c{number}"))
    assert sorted(one.id for one in found) == [f"j{number:02}" for number in range(12)]
    assert all(store.job(one.id).driver == one.driver for one in found)


def test_controllers_race_for_the_last_job_and_one_wins(store: Store) -> None:
    store.create_job(job())
    found = at_once(12, lambda number: claim(store, f"c{number}"))
    assert Counter(one is None for one in found) == {True: 11, False: 1}
    assert store.job("a1").epoch == 1


def test_directions_are_the_users_latest(store: Store) -> None:
    store.create_job(job())
    claim(store)
    assert store.directions("a1", epoch=1) == Directions(order=None, trials=9, time_limit_s=None)
    change_plan(store, "a1", trials=99, time_limit_s=5.0)
    pause(store, "a1")
    assert store.directions("a1", epoch=1) == Directions(order=Order.PAUSE, trials=99, time_limit_s=5.0)
    cancel(store, "a1")
    assert store.directions("a1", epoch=1).order is Order.CANCEL
    resume(store, "a1")
    assert store.directions("a1", epoch=1).order is None


def test_a_renewed_lease_lasts_and_readers_need_not_look(store: Store) -> None:
    store.create_job(job())
    before = claim(store, lease_s=OVER)
    store.renew("a1", epoch=1, lease_s=60.0)
    after = store.job("a1")
    assert before is not None
    assert after.leased_until is not None
    assert after.leased_until - now() > timedelta(seconds=50)
    assert after.version == before.version
    assert claim(store) is None


def test_a_settled_job_has_no_lease_to_renew(store: Store) -> None:
    store.create_job(job())
    claim(store)
    store.change_job("a1", settled(1, JobState.FINISHED, "done"))
    store.renew("a1", epoch=1, lease_s=60.0)
    assert store.job("a1").leased_until is None


def test_a_stage_is_recorded_and_readers_of_versions_need_not_look(store: Store) -> None:
    store.create_job(job())
    before = claim(store)
    store.record_stage("a1", STAGE, epoch=1)
    after = store.job("a1")
    assert before is not None
    assert (before.stage, after.stage) == (None, STAGE)
    assert (after.version, after.updated_at) == (before.version, before.updated_at)
    assert store.stages() == {"a1": STAGE}


@pytest.mark.parametrize(
    "end",
    [
        settled(1, JobState.FINISHED, "done"),
        settled(1, JobState.FAILED, "no", error="no"),
        released(1, "its driver is gone"),
        claimed("next"),
    ],
)
def test_a_stage_ends_with_its_driver_and_none_comes_later(store: Store, end: Transition) -> None:
    store.create_job(job())
    claim(store, lease_s=OVER)
    store.record_stage("a1", STAGE, epoch=1)
    ended = store.change_job("a1", end)
    assert ended.stage is None
    with suppress(LeaseLostError):
        store.record_stage("a1", STAGE, epoch=1)
    assert store.job("a1").stage is None
    assert store.stages() == {}


STALE = [
    lambda store: store.record_stage("a1", STAGE, epoch=1),
    lambda store: store.renew("a1", epoch=1, lease_s=60.0),
    lambda store: store.directions("a1", epoch=1),
    lambda store: store.record([result(0, events=(event("x", "y"),), elapsed_s=1.0)], epoch=1),
    lambda store: store.record([result(0), result(1)], epoch=1),
    lambda store: store.change_job("a1", with_fields(1, event("x", "y"), error="z")),
    lambda store: store.change_job("a1", settled(1, JobState.FINISHED, "done")),
]


@pytest.mark.parametrize("write", STALE)
def test_a_driver_that_lost_its_lease_writes_nothing(store: Store, write: Callable[[Store], None]) -> None:
    store.create_job(job())
    claim(store, "old", OVER)
    claim(store, "new")
    before = everything(store)
    with pytest.raises(LeaseLostError, match="job a1 was given to new"):
        write(store)
    assert everything(store) == before


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.renew("b2", epoch=0, lease_s=1.0),
        lambda store: store.directions("b2", epoch=0),
        lambda store: store.record_stage("b2", STAGE, epoch=0),
        lambda store: cancel(store, "b2"),
    ],
)
def test_what_is_asked_about_an_unknown_job_is_not_found(store: Store, ask: Callable[[Store], Any]) -> None:
    with pytest.raises(NotFoundError, match="no job 'b2'"):
        ask(store)


def test_held_jobs_are_those_with_a_driver_by_rank(store: Store) -> None:
    for job_id, priority in (("low", 0), ("high", 1), ("over", 2), ("waits", -1)):
        store.create_job(job(job_id, priority=priority))
    store.create_job(job("own", served=False))
    store.change_job("over", claimed("c", OVER))
    for job_id in ("low", "high", "own"):
        store.change_job(job_id, claimed("c", 60.0))
    wanted = {"driver": "c", "epoch": 1, "count": 3, "cpus": 0.5, "gpus": 0.25}
    assert store.held_jobs() == [HeldJob(job_id="high", **wanted), HeldJob(job_id="low", **wanted)]  # type: ignore[arg-type]


def test_held_jobs_tell_the_kind_of_their_hardware_once_it_is_known(store: Store) -> None:
    for job_id, kind in (("new", None), ("old", ""), ("known", "AMD EPYC (AVX2)")):
        store.create_job(job(job_id))
        store.change_job(job_id, claimed("c", 60.0))
        if kind is not None:
            store.change_job(job_id, with_fields(1, description=description(kind)))
    assert {found.job_id: found.kind for found in store.held_jobs()} == {
        "new": "", "old": "", "known": "AMD EPYC (AVX2)",
    }  # fmt: skip


def test_a_batch_is_recorded_in_order_and_counted_once(store: Store) -> None:
    store.create_job(job())
    claim(store)
    fronts = [FrontRecord(trials=n + 1, members=tuple(range(n + 1)), hypervolume=n / 3) for n in range(3)]
    batch = [
        result(2 - n, front=fronts[n], events=(event("e", str(n)),), elapsed_s=0.5) for n in range(3)
    ]  # fmt: skip
    store.record(batch, epoch=1)
    found, trials, kept, events = everything(store)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert kept == fronts
    assert [told.message for told in events[1:]] == ["0", "1", "2"]
    assert (found.elapsed_s, found.version) == (1.5, 2)


def test_a_batch_that_was_recorded_in_part_is_completed(store: Store) -> None:
    store.create_job(job())
    front = FrontRecord(trials=1, members=(0,), hypervolume=0.5)
    first = result(0, front=front, events=(event("e", "0"),), elapsed_s=1.0)
    store.record([first], epoch=0)
    store.record([first, result(1, events=(event("e", "1"),), elapsed_s=1.0)], epoch=0)
    found, trials, fronts, events = everything(store)
    assert [trial.number for trial in trials] == [0, 1]
    assert (fronts, len(events), found.elapsed_s) == ([front], 2, 2.0)


def test_a_batch_with_a_map_that_is_known_leaves_nothing(store: Store) -> None:
    store.create_job(job())
    store.record([result(0)], epoch=0)
    before = everything(store)
    twin = result(2)
    twin = dataclasses.replace(twin, trial=dataclasses.replace(twin.trial, key=result(0).trial.key))
    with pytest.raises(ConflictError, match="same map"):
        store.record([result(1), twin], epoch=0)
    assert everything(store) == before


def test_nothing_is_recorded_in_no_time(store: Store) -> None:
    store.record([], epoch=0)


def test_events_and_fronts_are_numbered_through_all_writers(store: Store) -> None:
    """A driver that records and a user who orders at the same time get numbers of their own."""
    store.create_job(job())
    claim(store)

    def write(number: int) -> None:
        if number % 2:
            change_plan(store, "a1", trials=100 + number)
            return
        front = FrontRecord(trials=number, members=(number,), hypervolume=0.0)
        store.record([result(number, front=front, events=(event("e", str(number)),))], epoch=1)

    at_once(16, write)
    assert len(store.events("a1")) == 1 + 16
    assert {front.members for front in store.fronts("a1")} == {(number,) for number in range(0, 16, 2)}


def test_trials_recorded_forgive_earlier_crashes(store: Store) -> None:
    store.create_job(job(crashes=2))
    store.record([result(0)], epoch=0)
    assert store.job("a1").crashes == 0


def ends(store: Store, endings: Sequence[Transition]) -> list[JobState]:
    return [store.change_job("a1", ending).state for ending in endings]


@pytest.mark.parametrize("round_", range(5))
def test_a_cancel_that_races_with_the_end_has_one_winner(store: Store, round_: int) -> None:
    store.create_job(job())
    claim(store)
    endings = [lambda: cancel(store, "a1"), lambda: store.change_job("a1", settled(1, JobState.FINISHED, "done"))]
    first, second = at_once(2, lambda number: endings[(number + round_) % 2]())
    assert store.job("a1").state is JobState.FINISHED
    assert [told.kind for told in store.events("a1")] == ["started", "finished"]
    assert any(not isinstance(one, ConflictError) for one in (first, second))
    assert ends(store, [released(1, "late"), settled(1, JobState.FINISHED, "done")]) == [JobState.FINISHED] * 2
