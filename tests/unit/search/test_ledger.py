"""What a driver records of its time: trials and probing count, and waiting for the device does not."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from autotune.client.actions import submit
from autotune.jobs.lifecycle import claimed
from autotune.jobs.progress import Progress, Silent
from autotune.jobs.records import JobRecord, TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.search import ledger
from autotune.search.ledger import Ledger
from autotune.store.in_memory import MemoryStore
from workers.timing.estimates import Figure

OBJECTIVES = ["latency_p50_ms", "divergence"]


@pytest.fixture
def watch(stop_clock: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return stop_clock(ledger)


class Told(Silent):
    """Keeps what it is told of trials."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def trial(self, progress: Progress) -> None:
        self.progress.append(progress)


def trial(number: int, latency: float, divergence: float, **changes: object) -> TrialRecord:
    figures = {"latency_p50_ms": Figure(value=latency), "divergence": Figure(value=divergence)}
    made = TrialRecord(
        job_id="", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE,
        choices={"fc": str(number)}, key=str(number), figures=figures, seconds=1.0, finished_at=now(),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


class Driver:
    """A store with one job, which a driver holds, and what it hears."""

    def __init__(self, *, time_limit_s: float | None = None, trials: int = 10) -> None:
        search = {"trials": trials} | ({} if time_limit_s is None else {"time_limit_s": time_limit_s})
        document = {"name": "x", "task": {"name": "digits-cnn"}, "objectives": OBJECTIVES, "search": search}
        self.store, self.told = MemoryStore(), Told()
        job_id = submit(self.store, JobSpec.parse(document)).id
        self.store.change_job(job_id, claimed("d"))
        self.job_id = job_id

    @property
    def job(self) -> JobRecord:
        return self.store.job(self.job_id)

    def ledger(self, loading_s: float = 0.0) -> Ledger:
        return Ledger(self.store, self.job, self.told, loading_s=loading_s)

    def result(self, number: int, latency: float, divergence: float) -> TrialResult:
        return TrialResult(trial=trial(number, latency, divergence, job_id=self.job_id))


def test_loading_probing_and_trials_count_and_waiting_does_not(watch: SimpleNamespace) -> None:
    driver = Driver(time_limit_s=100.0)
    book = driver.ledger(loading_s=5.0)
    assert book.share == pytest.approx(0.05)
    watch.now_s += 20.0
    book.set_aside(20.0, waited_s=12.0)  # so that probing took 8 s
    assert book.share == pytest.approx(0.13)
    watch.now_s += 7.0
    book.commit([driver.result(0, 10.0, 0.0)], waited_s=3.0)
    assert driver.job.elapsed_s == pytest.approx(5.0 + 8.0 + 4.0)
    watch.now_s += 2.0
    book.commit([driver.result(1, 9.0, 1e-3), driver.result(2, 8.0, 1e-2)])
    assert driver.job.elapsed_s == pytest.approx(19.0)
    assert [one.elapsed_s for one in driver.told.progress] == pytest.approx([17.0, 19.0])
    # Of 19 s, 13 were not spent on trials: 2 s each are left for the seven that are.
    assert driver.told.progress[-1].remaining_s == pytest.approx(7 * 2.0 + 4 * 2.0)


def test_waiting_longer_than_there_was_time_costs_nothing(watch: SimpleNamespace) -> None:
    driver = Driver()
    book = driver.ledger()
    watch.now_s += 3.0
    book.commit([driver.result(0, 10.0, 0.0)], waited_s=30.0)
    assert driver.job.elapsed_s == 0.0


def test_a_later_driver_goes_on_from_what_was_spent(watch: SimpleNamespace) -> None:
    driver = Driver(time_limit_s=40.0, trials=3)
    book = driver.ledger()
    watch.now_s += 10.0
    book.commit([driver.result(book.next_number(), 10.0, 0.0)])
    watch.now_s += 1000.0  # nobody drives it meanwhile
    later = driver.ledger(loading_s=2.0)
    assert later.share == pytest.approx(0.3)
    assert later.next_number() == 1
    assert later.budget.searched == 1
    assert (later.allows_search(1), later.allows_search(2)) == (True, False)
    assert later.left_s == pytest.approx(2.0), "two trials at 1 s each"
    assert later.timing_s(final=True) == pytest.approx(14.0), "half of what is left"
    watch.now_s += 28.0
    assert not later.allows_search(0)
    assert not later.allows_final(0)


def test_every_trial_is_recorded_with_the_front_after_it(watch: SimpleNamespace) -> None:
    driver = Driver()
    book = driver.ledger()
    book.commit([driver.result(0, 10.0, 0.0), driver.result(1, 11.0, 1e-3), driver.result(2, 8.0, 1e-2)])
    assert [front.members for front in driver.store.fronts(driver.job_id)] == [(0,), (0, 2)], (
        "one beside it changes none"
    )
    assert [one.number for one in driver.store.trials(driver.job_id)] == [0, 1, 2]
    (told,) = driver.told.progress
    assert (told.done, told.budget, told.front_size) == (3, 10, 2)
    assert told.best is not None
    assert told.best.number == 2, "the best in the first objective"


def test_nothing_is_committed_where_nothing_was_measured(watch: SimpleNamespace) -> None:
    driver = Driver()
    driver.ledger().commit([])
    assert driver.told.progress == []
    assert driver.store.trials(driver.job_id) == []
