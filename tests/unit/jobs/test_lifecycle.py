"""Every state of a job against everything that can happen to it, and what holds after any sequence of that."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from autotune.errors import ConflictError, JobSpecError, LeaseLostError
from autotune.jobs import lifecycle
from autotune.jobs.lifecycle import Change, Transition
from autotune.jobs.records import JobRecord, JobState, Order
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import event

AT = datetime(2026, 1, 2, tzinfo=UTC)
LEASE_S = 30.0
SPEC = JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}, "search": {"trials": 9}}).dump()
JOB = JobRecord(
    id="a1",
    name="x",
    task="digits-cnn",
    document=SPEC,
    state=JobState.QUEUED,
    created_at=AT,
    updated_at=AT,
    served=True,
)


def job(situation: str, **changes: Any) -> JobRecord:
    """A job in one of the situations of the table below, under epoch 5."""
    state = JobState.RUNNING if situation in ("held", "expired") else JobState(situation)
    leased_until = {"held": AT + timedelta(seconds=1), "expired": AT}.get(situation)
    return dataclasses.replace(JOB, state=state, epoch=5, driver="old", leased_until=leased_until, **changes)


TRANSITIONS: dict[str, Transition] = {
    "claim": lifecycle.claimed("new", LEASE_S),
    "release": lifecycle.released(5, "gone"),
    "finish": lifecycle.settled(5, JobState.FINISHED, "done"),
    "fail": lifecycle.settled(5, JobState.FAILED, "broken", error="broken"),
    "pause": lifecycle.ordered(Order.PAUSE),
    "cancel": lifecycle.ordered(Order.CANCEL),
    "resume": lifecycle.requeued,
}

# What becomes of a job: its state, with an order that waits for the driver after a plus; a dash where it is refused.
TABLE = """
               claim    release    finish     fail       pause          cancel          resume
    queued     running  queued     queued     queued     paused         cancelled       queued
    held       -        queued     finished   failed     running+pause  running+cancel  running
    expired    running  queued     finished   failed     paused         cancelled       queued
    paused     running  paused     paused     paused     paused         cancelled       queued
    finished   running  finished   finished   finished   -              -               queued
    cancelled  running  cancelled  cancelled  cancelled  -              cancelled       queued
    failed     running  failed     failed     failed     -              cancelled       queued
"""
# The same for jobs that run with an order that was not carried out yet.
ORDERED = """
                    claim      release    finish    fail       pause          cancel          resume
    held+pause      -          paused     finished  failed     running+pause  running+cancel  running
    held+cancel     -          cancelled  finished  cancelled  -              running+cancel  running
    expired+pause   paused     paused     finished  failed     paused         cancelled       queued
    expired+cancel  cancelled  cancelled  finished  cancelled  -              cancelled       queued
"""


def cells(table: str) -> list[tuple[str, str, str]]:
    heading, *lines = (line.split() for line in table.strip().splitlines())
    return [(line[0], name, cell) for line in lines for name, cell in zip(heading, line[1:], strict=True)]


@pytest.mark.parametrize(("situation", "name", "expected"), cells(TABLE) + cells(ORDERED))
def test_every_state_knows_what_to_do(situation: str, name: str, expected: str) -> None:
    where, _, order = situation.partition("+")
    before = job(where, order=Order(order) if order else None)
    if expected == "-":
        with pytest.raises(ConflictError, match="job a1 is "):
            TRANSITIONS[name](before, AT)
        return
    change = TRANSITIONS[name](before, AT)
    state, _, waiting = expected.partition("+")
    assert change.job.state.value == state
    assert (change.job.order.value if change.job.order else "") == waiting
    assert is_legal(change.job)
    assert bool(change.events) == (change.job.state is not before.state or name == "claim"), "events tell of changes"
    assert all(told.at == AT for told in change.events)


def is_legal(record: JobRecord) -> bool:
    running = record.state is JobState.RUNNING
    return (record.leased_until is not None) == running and (record.order is None or running)


WRITES = [
    lifecycle.with_fields(5, error="x"),
    lifecycle.settled(5, JobState.FINISHED, "done"),
    lifecycle.settled(5, JobState.PAUSED, "stopped"),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("situation", ["held", "expired", "queued", "cancelled"])
def test_a_driver_whose_job_was_given_away_writes_nothing(situation: str, write: Transition) -> None:
    with pytest.raises(
        LeaseLostError, match="job a1 was given to old because its lease had expired; nothing was written"
    ):
        write(dataclasses.replace(job(situation), epoch=6), AT)


def test_a_lost_driver_is_not_released_from_a_job_that_another_one_has() -> None:
    taken = dataclasses.replace(job("held"), epoch=6)
    assert lifecycle.released(5, "gone", crashed=True)(taken, AT) == Change(job=taken)


def test_a_claim_takes_the_next_epoch_and_says_why() -> None:
    told = {}
    for situation in ("queued", "expired"):
        change = lifecycle.claimed("new", LEASE_S)(job(situation, error="old"), AT)
        assert (change.job.epoch, change.job.driver, change.job.error) == (6, "new", None)
        assert change.job.leased_until == AT + timedelta(seconds=LEASE_S)
        told[situation] = change.events[0]
    assert told["queued"].kind == "started"
    assert (told["expired"].kind, told["expired"].message) == ("taken_over", "Driver old was lost; new continues")


def test_an_order_that_is_carried_out_by_others_stops_a_driver_thought_dead() -> None:
    cancelled = lifecycle.ordered(Order.CANCEL)(job("expired"), AT).job
    with pytest.raises(LeaseLostError):
        lifecycle.with_fields(5)(cancelled, AT)


def test_a_job_that_is_given_up_after_it_failed_is_no_failure() -> None:
    cancelled = lifecycle.ordered(Order.CANCEL)(job("failed", error="broken"), AT).job
    assert (cancelled.state, cancelled.error) == (JobState.CANCELLED, None)


def test_drivers_that_die_again_and_again_fail_the_job() -> None:
    record = job("held")
    for deaths in range(1, lifecycle.MOST_CRASHES):
        change = lifecycle.released(record.epoch, "signal SIGSEGV", crashed=True)(record, AT)
        assert (change.job.state, change.job.crashes) == (JobState.QUEUED, deaths)
        record = lifecycle.claimed("new", LEASE_S)(change.job, AT).job
    change = lifecycle.released(record.epoch, "signal SIGSEGV", crashed=True)(record, AT)
    assert (change.job.state, change.job.crashes) == (JobState.FAILED, 0)
    assert change.job.error == (
        "its driver died 3 times in a row without recording a trial; the last time: signal SIGSEGV"
    )


def test_releases_without_a_crash_never_fail_the_job() -> None:
    record = job("held", crashes=2)
    assert lifecycle.released(5, "its controller was stopped")(record, AT).job.crashes == 2


def test_a_job_is_settled_once() -> None:
    settle = lifecycle.settled(5, JobState.FINISHED, "done")
    once = settle(job("held"), AT).job
    assert settle(once, AT) == Change(job=once)


def test_the_driver_changes_fields_and_records_events() -> None:
    told = event("probes_failed", "x")
    change = lifecycle.with_fields(5, told, error="y")(job("held"), AT)
    assert (change.job.error, change.events) == ("y", (told,))


def test_a_new_plan_is_validated_and_recorded() -> None:
    change = lifecycle.replanned(priority=3, trials=50, time_limit_s=90.0)(job("held"), AT)
    assert (change.job.priority, change.job.spec.search.trials) == (3, 50)
    assert [told.message for told in change.events] == ["Budget 50 trials in 90 s, priority 3"]
    assert lifecycle.replanned(trials=50, time_limit_s=90.0)(change.job, AT) == Change(job=change.job)
    with pytest.raises(JobSpecError, match=r"job a1[\s\S]*search.trials"):
        lifecycle.replanned(trials=0)(job("held"), AT)


class Life(RuleBasedStateMachine):
    """One job, drivers that may be slow, and a user; the machine keeps account of what each was promised."""

    def __init__(self) -> None:
        super().__init__()
        self.job, self.at = JOB, AT
        #: Epochs handed out; each stands for a driver that may still believe it has the job.
        self.epochs: list[int] = []
        #: An order that a user was told would be carried out, and was not yet.
        self.promised: Order | None = None

    def apply(self, transition: Transition) -> Change:
        change = transition(self.job, self.at)
        self.job = change.job
        return change

    @initialize()
    def first_claim(self) -> None:
        self.claim()

    @rule(seconds=st.sampled_from([1, 10, 31]))
    def time_goes_by(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)

    @rule()
    def claim(self) -> None:
        before, held = self.job, lifecycle.is_held(self.job, self.at)
        try:
            self.apply(lifecycle.claimed(f"d{len(self.epochs)}", LEASE_S))
        except ConflictError:
            assert held
            return
        assert not held, "two drivers have the job"
        assert self.job.epoch == before.epoch + 1
        if self.job.state is JobState.RUNNING:
            self.epochs.append(self.job.epoch)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        def renewed(job: JobRecord, at: datetime) -> Change:
            lifecycle.check_epoch(job, epoch)
            until = at + timedelta(seconds=LEASE_S) if job.state is JobState.RUNNING else None
            return Change(job=dataclasses.replace(job, leased_until=until))

        epoch = data.draw(st.sampled_from(self.epochs))
        self.write(epoch, renewed)

    @rule(data=st.data(), state=st.sampled_from([JobState.FINISHED, JobState.FAILED, JobState.PAUSED]))
    def settle(self, data: st.DataObject, state: JobState) -> None:
        epoch = data.draw(st.sampled_from(self.epochs))
        was_running = self.job.state is JobState.RUNNING
        if self.write(epoch, lifecycle.settled(epoch, state, "m", error="e")) and was_running:
            obeyed = self.promised is None or self.job.state is self.promised.state
            assert obeyed or self.job.state is state
            assert self.promised is not Order.CANCEL or self.job.state in (JobState.CANCELLED, JobState.FINISHED)
            self.promised = None

    @rule(data=st.data(), crashed=st.booleans())
    def release(self, data: st.DataObject, crashed: bool) -> None:
        epoch, before = data.draw(st.sampled_from(self.epochs)), self.job
        self.apply(lifecycle.released(epoch, "m", crashed=crashed))
        if epoch != before.epoch:
            assert self.job == before, "a job was taken from its driver"

    @rule(order=st.sampled_from(Order))
    def give_order(self, order: Order) -> None:
        try:
            self.apply(lifecycle.ordered(order))
        except ConflictError:
            return
        if self.job.state is not order.state:
            self.promised = order

    @rule()
    def resume(self) -> None:
        self.apply(lifecycle.requeued)
        self.promised = None

    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        epoch = data.draw(st.sampled_from(self.epochs))
        self.write(epoch, lifecycle.with_fields(epoch, crashes=0))

    def write(self, epoch: int, transition: Transition) -> bool:
        """Write as the driver of an epoch, and return whether it was let; a stale one must not be."""
        before = self.job
        try:
            self.apply(transition)
        except LeaseLostError:
            assert epoch != before.epoch
            assert self.job == before
            return False
        assert epoch == before.epoch, "a stale driver wrote"
        return True

    @invariant()
    def is_in_a_legal_state(self) -> None:
        assert is_legal(self.job), self.job

    @invariant()
    def no_order_is_lost(self) -> None:
        if self.promised and self.job.state in (self.promised.state, JobState.CANCELLED):
            self.promised = None
        assert self.promised is None or self.job.order is self.promised


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
