"""What a controller does with jobs and with drivers that end; the drivers themselves are dummies."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.client.actions import pause, submit
from autotune.errors import StoreUnavailableError
from autotune.jobs.lifecycle import MOST_CRASHES, claimed, is_held, settled
from autotune.jobs.records import JobRecord, JobState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.service.child import Ended
from autotune.service.controller import Controller
from autotune.service.settings import ServiceSettings
from autotune.store.in_memory import MemoryStore
from workers.errors import ClusterLostError

LEASE_S = 0.3


class Dummy:
    """A child's process as far as the controller looks at it."""

    def __init__(self, target: Any, args: tuple[Any, ...]) -> None:
        self.pid, self.exitcode = 1, None

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def controller(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = Controller(store, ServiceSettings(database="", ray_address="127.0.0.1:1", lease_s=LEASE_S))
    monkeypatch.setattr(made, "_context", SimpleNamespace(Process=Dummy))
    monkeypatch.setattr(made, "_cluster", lambda: "127.0.0.1:1")
    monkeypatch.setattr(made, "_cluster_is_up", lambda: True)
    return made


@pytest.fixture
def job(store: MemoryStore) -> JobRecord:
    return submit(store, JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}}))


def start(controller: Controller) -> list[Dummy]:
    controller._start_jobs()
    return [child.process for child in controller._children]  # type: ignore[misc]


def test_a_lease_does_not_run_out_while_a_cluster_starts(
    controller: Controller, store: MemoryStore, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_at = now()

    def slow() -> None:
        nonlocal up_at
        time.sleep(1.5 * LEASE_S)
        up_at = now()

    monkeypatch.setattr(controller, "_cluster", slow)
    assert len(start(controller)) == 1
    assert is_held(store.job(job.id), up_at)
    assert store.job(job.id).epoch == 1


def test_a_job_that_was_given_away_while_a_cluster_started_is_not_run(
    controller: Controller, store: MemoryStore, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> None:
        time.sleep(1.5 * LEASE_S)
        store.claim_next(claimed("another", 60.0))

    monkeypatch.setattr(controller, "_cluster", slow)
    assert start(controller) == []
    assert (store.job(job.id).driver, store.job(job.id).epoch) == ("another", 2)


def test_a_job_waits_for_a_cluster_that_is_away(
    controller: Controller, store: MemoryStore, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise ClusterLostError("nothing answers")

    monkeypatch.setattr(controller, "_cluster", away)
    assert start(controller) == []
    assert start(controller) == [], "the cluster is not asked for all the time"
    assert store.job(job.id).state is JobState.QUEUED
    assert [told.message for told in store.events(job.id)][1:] == ["Waiting for a Ray cluster: nothing answers"]


@pytest.mark.parametrize(
    ("code", "message", "crashes"),
    [
        (-9, "its driver ended with signal SIGKILL", 1),
        (1, "its driver ended with exit code 1", 1),
        (Ended.CLUSTER_LOST, "Its workers were lost with the Ray cluster", 0),
        (Ended.STOPPED, "Its controller was stopped", 0),
    ],
)
def test_a_job_whose_driver_ended_goes_back_into_the_queue(
    controller: Controller, store: MemoryStore, job: JobRecord, code: int, message: str, crashes: int
) -> None:
    (child,) = start(controller)
    child.exitcode = code  # type: ignore[assignment]
    controller._look_after_children()
    assert (store.job(job.id).state, store.job(job.id).crashes) == (JobState.QUEUED, crashes)
    assert store.events(job.id)[-1].message == message
    assert controller._children == []


@pytest.mark.parametrize("code", [Ended.SETTLED, Ended.LEASE_LOST])
def test_a_job_that_ended_or_has_another_driver_is_left_alone(
    controller: Controller, store: MemoryStore, job: JobRecord, code: int
) -> None:
    (child,) = start(controller)
    store.change_job(job.id, settled(1, JobState.FINISHED, "done"))
    before, child.exitcode = store.job(job.id), code  # type: ignore[assignment]
    controller._look_after_children()
    assert store.job(job.id) == before


def test_a_job_that_kills_its_drivers_fails(controller: Controller, store: MemoryStore, job: JobRecord) -> None:
    for _ in range(MOST_CRASHES):
        (child,) = start(controller)
        child.exitcode = -11  # type: ignore[assignment]
        controller._look_after_children()
    assert store.job(job.id).state is JobState.FAILED
    assert "its driver died 3 times in a row" in (store.job(job.id).error or "")
    assert start(controller) == []


def test_a_job_of_a_driver_that_is_gone_is_free_at_once(
    controller: Controller, store: MemoryStore, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.change_job(job.id, claimed("gone", 600.0))
    monkeypatch.setattr("autotune.search.process_identity.is_gone", lambda driver: driver == "gone")
    controller._release_jobs_of_dead_drivers()
    assert len(start(controller)) == 1


def test_an_order_that_waited_is_carried_out_without_a_driver(
    controller: Controller, store: MemoryStore, job: JobRecord
) -> None:
    store.change_job(job.id, claimed("old", 60.0))
    pause(store, job.id)
    store.renew(job.id, epoch=1, lease_s=-1.0)
    assert start(controller) == []
    assert store.job(job.id).state is JobState.PAUSED


def test_a_controller_lives_through_a_database_that_is_away(
    controller: Controller, store: MemoryStore, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def away(*_: object) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            controller.stop()
        raise StoreUnavailableError("away")

    monkeypatch.setattr(controller, "_settings", ServiceSettings(database="", ray_address="x", poll_s=0.01))
    monkeypatch.setattr(controller, "_preload", lambda: None)
    monkeypatch.setattr(store, "claim_next", away)
    monkeypatch.setattr("autotune.service.controller.use_token", lambda: None)
    controller.run()
    assert looks == 3
