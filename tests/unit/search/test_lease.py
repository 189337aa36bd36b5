"""A lease in its thread: kept, lost, overdue, and what the user asks meanwhile."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from autotune.client.actions import cancel, change_plan, pause, resume, submit
from autotune.errors import LeaseLostError, StoreUnavailableError
from autotune.jobs.lifecycle import Change, OrderedError, claimed, is_held
from autotune.jobs.records import JobRecord, JobStage, Order
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.search.lease import Lease
from autotune.store.in_memory import MemoryStore

LEASE_S = 0.6


class MoodyStore(MemoryStore):
    """A store whose database can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.is_up = threading.Event()
        self.is_up.set()

    def renew(self, job_id: str, *, epoch: int, lease_s: float) -> None:
        if not self.is_up.is_set():
            raise StoreUnavailableError("the database is away")
        super().renew(job_id, epoch=epoch, lease_s=lease_s)


@pytest.fixture
def store() -> MoodyStore:
    return MoodyStore()


@pytest.fixture
def job(store: MoodyStore) -> JobRecord:
    spec = JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}, "search": {"trials": 9}})
    return store.change_job(submit(store, spec).id, claimed("me", LEASE_S))


@pytest.fixture
def lease(store: MoodyStore, job: JobRecord) -> Iterator[Lease]:
    with Lease(store, job, lease_s=LEASE_S) as kept:
        yield kept


def wait_for(check: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def raises(lease: Lease, kind: type[Exception]) -> bool:
    try:
        lease.check()
    except kind:
        return True
    return False


def test_a_lease_is_kept_as_long_as_its_driver_works(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    first = store.job(job.id).leased_until
    assert first is not None
    wait_for(lambda: now() > first)
    lease.check()
    wait_for(lambda: is_held(store.job(job.id), now()))
    wait_for(lambda: lease.held_jobs)
    assert [held_job.job_id for held_job in lease.held_jobs] == [job.id]


def test_a_lease_is_not_renewed_when_its_driver_is_done(store: MoodyStore, job: JobRecord) -> None:
    with Lease(store, job, lease_s=LEASE_S):
        pass
    wait_for(lambda: not is_held(store.job(job.id), now()))


def test_directions_follow_the_users_wishes(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    change_plan(store, job.id, trials=50, time_limit_s=9.0)
    wait_for(lambda: lease.directions and lease.directions.trials == 50)
    assert lease.directions is not None
    assert lease.directions.time_limit_s == 9.0


@pytest.mark.parametrize(("action", "order"), [(pause, Order.PAUSE), (cancel, Order.CANCEL)])
def test_an_order_reaches_the_driver(
    store: MoodyStore, job: JobRecord, lease: Lease, action: Callable[..., JobRecord], order: Order
) -> None:
    lease.check()
    action(store, job.id)
    wait_for(lambda: raises(lease, OrderedError))
    with pytest.raises(OrderedError) as caught:
        lease.check()
    assert caught.value.order is order


def test_an_order_that_is_taken_back_in_time_is_forgotten(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    pause(store, job.id)
    wait_for(lambda: raises(lease, OrderedError))
    resume(store, job.id)
    wait_for(lambda: not raises(lease, OrderedError))


def test_a_driver_learns_that_another_one_has_its_job(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    store.is_up.clear()
    wait_for(lambda: not is_held(store.job(job.id), now()))
    store.change_job(job.id, claimed("other", 60.0))
    store.is_up.set()
    wait_for(lambda: raises(lease, LeaseLostError))
    with pytest.raises(LeaseLostError, match="was given to other"):
        lease.check()
    assert store.job(job.id).epoch == job.epoch + 1


def test_no_work_is_handed_out_under_an_overdue_lease(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    store.is_up.clear()
    until = store.job(job.id).leased_until
    assert until is not None
    went_on: list[float] = []

    def hand_out() -> None:
        while not went_on or went_on[-1] < back_at:
            lease.check()
            went_on.append(time.monotonic())

    back_at = float("inf")
    worker = threading.Thread(target=hand_out)
    worker.start()
    try:
        wait_for(lambda: now() > until)
        count, ran_out_at = len(went_on), time.monotonic()
        assert went_on[-1] < ran_out_at
        time.sleep(LEASE_S / 2)  # nothing can be waited for: what matters is that nothing happens
        assert len(went_on) == count, "work was handed out after the lease had run out"
    finally:
        back_at = time.monotonic()
        store.is_up.set()
        worker.join(20.0)
    assert went_on[-1] >= back_at, "the driver did not go on when its lease was renewed"


@pytest.mark.parametrize("trouble", ["cancelled", "lost"])
def test_a_driver_that_does_not_listen_is_given_up_after_a_while(
    store: MoodyStore, job: JobRecord, trouble: str
) -> None:
    given_up = threading.Event()
    with Lease(store, job, lease_s=LEASE_S, grace_s=0.3, give_up=given_up.set):
        told_at = time.monotonic()
        if trouble == "cancelled":
            cancel(store, job.id)
        else:
            store.change_job(job.id, lambda given, at: Change(job=dataclasses.replace(given, epoch=given.epoch + 1)))
        assert given_up.wait(20.0)
        assert time.monotonic() - told_at >= 0.3


def test_a_driver_that_listens_is_not_given_up(store: MoodyStore, job: JobRecord) -> None:
    given_up = threading.Event()
    with Lease(store, job, lease_s=LEASE_S, grace_s=1.5, give_up=given_up.set) as lease:
        cancel(store, job.id)
        wait_for(lambda: raises(lease, OrderedError))
        resume(store, job.id)
        wait_for(lambda: not raises(lease, OrderedError))
        assert not given_up.wait(1.7)


def test_the_latest_stage_of_a_driver_is_recorded(store: MoodyStore, job: JobRecord, lease: Lease) -> None:
    for done in range(100):
        lease.tell(JobStage(name="Calibrating", done=done, total=99))
    wait_for(lambda: store.job(job.id).stage == JobStage(name="Calibrating", done=99, total=99))
