"""Recovery of maps after the search: what is recorded, and what is not."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autotune.client.actions import cancel, check_resumable, submit
from autotune.errors import ConflictError, NotFoundError
from autotune.jobs import lifecycle
from autotune.jobs.records import JobState, TrialKind, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.metrics.from_measurement import Reference
from autotune.search import run
from autotune.search.run import recover_maps, run_job
from autotune.search.trials import PlannedTrial
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from workers.candidate import Candidate, Outcome
from workers.errors import PoolError
from workers.measurement import Environment, LatencySamples, Measurement
from workers.recovered import Recovered, RecoveryReport, RecoverySettings, digest
from workers.setup import Calibration, ModelDescription

ENVIRONMENT = Environment(hardware="cpu", kind="k", backend="x86", threads=2, load=0.5, versions={})
LAYER = Layer(
    name="fc", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
    flops=48, calls=1, order=0, group="fc",
)  # fmt: skip
DESCRIPTION = ModelDescription(
    fingerprint="f" * 64, layers=(LAYER,), refusals={"fc": {}}, layer_bytes={"fc": {"fp32": 64, "int8_dynamic": 16}},
    other_bytes=0, calibration=Calibration(ranges={}, samples=64, seconds=0.5), environment=ENVIRONMENT,
)  # fmt: skip
SPEC = {
    "name": "x",
    "task": {"name": "digits-cnn"},
    "objectives": ["latency_p50_ms", "divergence"],
    "constraints": {"divergence": {"max": 0.01}},
}
SETTINGS = RecoverySettings(time_limit_s=100.0)


def measured(divergence: float, ms: float | None = None, shifted: float | None = None) -> Measurement:
    latency = LatencySamples(batch_size=1, candidate_ms=np.full(40, ms or 0.0), reference_ms=np.full(8, 10.0))
    return Measurement(
        accuracy=0.9, divergence=divergence, weight_bytes=3 << 20, latency=() if ms is None else (latency,),
        working_bytes=1 << 20, shifted=None if shifted is None else (0.8, shifted), seconds=2.0, forward_seconds=1.5,
        environment=ENVIRONMENT,
    )  # fmt: skip


@dataclass
class RecoveringPool:
    """Recovers maps as it is told, and notes what it was asked for."""

    found: list[Recovered | BaseException]
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    closed: bool = False
    slots: int = 1

    def describe(self) -> ModelDescription:
        return DESCRIPTION

    def recover(self, *arguments: Any) -> Recovered:
        self.asked.append(arguments)
        found = self.found.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        self.closed = True


def recovered(divergence: float, learned: bytes = b"learned", shifted: float | None = None) -> Recovered:
    report = RecoveryReport(
        method="blocks", settings=SETTINGS, seconds=1.0, samples=48, validation_samples=16, before=0.02, after=0.005,
        layers=("fc",), kept={}, sha256=digest(learned), nbytes=len(learned),
    )  # fmt: skip
    return Recovered(report=report, learned=learned, measurement=measured(divergence, shifted=shifted))


def kept(why: str = "") -> Recovered:
    report = replace(recovered(0.0).report, layers=(), kept={"": why} if why else {}, sha256="", nbytes=0, after=0.02)
    return Recovered(report=report, learned=b"", measurement=None)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def job_id(store: MemoryStore) -> str:
    """A finished job with full precision and a fast map that loses twice the limit."""
    job = submit(store, JobSpec.parse(SPEC))
    job = store.change_job(job.id, lifecycle.claimed("here:1"))
    job = store.change_job(job.id, lifecycle.with_fields(job.epoch, description=DESCRIPTION))
    reference = None
    for number, (choice, result) in enumerate(
        [("fp32", measured(0.0, 10.0, 0.0)), ("int8_dynamic", measured(0.02, 5.0, 0.03))]
    ):
        planned = PlannedTrial(
            job_id=job.id, number=number, kind=TrialKind.BASELINE, label=f"uniform {choice}", choices={"fc": choice}
        )
        outcome = Outcome(
            candidate=Candidate(number=number, choices=planned.choices), result=result, attempts=1, worker="w"
        )
        trial = planned.finished(outcome, reference, job.spec.constraints.constraints(), {})
        reference = reference or Reference.of_figures(trial.figures)
        store.record([TrialResult(trial=trial, latency=result.latency)], epoch=job.epoch)
    store.change_job(job.id, lifecycle.settled(job.epoch, JobState.FINISHED, "Search finished: done"))
    return job.id


def pool_of(monkeypatch: pytest.MonkeyPatch, *found: Recovered | BaseException) -> RecoveringPool:
    pool = RecoveringPool(list(found))
    monkeypatch.setattr(run, "build_pool", lambda *_: pool)
    return pool


def rewritten(store: MemoryStore, job_id: str, spec: dict[str, Any]) -> None:
    """Give the job another job file."""
    document = JobSpec.parse(spec).dump()
    store.change_job(job_id, lambda job, at: lifecycle.Change(job=replace(job, document=document)))


def told(store: MemoryStore, job_id: str) -> list[tuple[str, str]]:
    """Return the events since the job finished, without the one about time."""
    events = [(event.kind, event.message) for event in store.events(job_id) if event.kind != "time_spent"]
    return events[[kind for kind, _ in events].index("finished") + 1 :]


def test_a_recovered_map_is_a_trial_on_the_front(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(monkeypatch, recovered(0.005, shifted=0.01))
    job = recover_maps(store, job_id, ["promising"], SETTINGS)
    full, parent, trial = store.trials(job_id)
    assert (trial.kind, trial.parent, trial.state) == (TrialKind.RECOVERED, parent.number, TrialState.COMPLETE)
    assert (parent.feasible, trial.feasible) == (False, True)
    assert trial.figures["latency_p50_ms"] == parent.figures["latency_p50_ms"]
    assert trial.figures["divergence"].value == 0.005
    assert store.artifact(trial.recovery.sha256) == b"learned"
    assert [sample.candidate_ms[0] for sample in store.latency(job_id, trial.number)] == [5.0]
    assert store.fronts(job_id)[-1].members == (full.number, trial.number)
    assert told(store, job_id) == [
        ("recovering", "Recovery started"),
        ("recovered", "Trial 2 is trial 1 with learned weights"),
        ("recovery_ended", "Recovery ended"),
    ]
    assert (job.state, job.leased_until, pool.closed) == (JobState.FINISHED, None, True)
    ((choices, backend, settings),) = pool.asked
    assert (choices, backend) == ({"fc": "int8_dynamic"}, "")
    assert 0.0 < settings.time_limit_s <= 100.0


def test_a_map_is_recovered_once(store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(monkeypatch, recovered(0.005))
    recover_maps(store, job_id, ["1"], SETTINGS)
    events = store.events(job_id)
    with pytest.raises(ConflictError, match="the map of trial 1 is recovered already, as trial 2"):
        recover_maps(store, job_id, ["1"], SETTINGS)
    recover_maps(store, job_id, ["promising"], SETTINGS)
    assert (len(pool.asked), len(store.trials(job_id))) == (1, 3)
    assert store.events(job_id) == events, "nothing was started"


def test_recovery_has_time_of_its_own(store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_of(monkeypatch, recovered(0.005))
    before = store.job(job_id).elapsed_s
    recover_maps(store, job_id, ["1"], SETTINGS)
    assert store.job(job_id).elapsed_s == before


def test_controllers_leave_a_job_alone_that_is_being_recovered(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.change_job(job_id, lambda job, at: lifecycle.Change(job=replace(job, served=True)))
    seen: list[tuple[JobState, bool]] = []

    class Watching(RecoveringPool):
        def recover(self, *arguments: Any) -> Recovered:
            seen.append((store.job(job_id).state, store.job(job_id).served))
            return super().recover(*arguments)

    pool = Watching([recovered(0.005)])
    monkeypatch.setattr(run, "build_pool", lambda *_: pool)
    assert recover_maps(store, job_id, ["1"], SETTINGS).served
    assert seen == [(JobState.RUNNING, False)]


def test_a_job_whose_driver_was_lost_can_be_recovered_and_is_paused_then(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_of(monkeypatch, recovered(0.005))
    store.change_job(job_id, lifecycle.claimed("gone:1", lease_s=-1.0))
    assert recover_maps(store, job_id, ["1"], SETTINGS).state is JobState.PAUSED


@pytest.mark.parametrize(
    ("divergence", "shifted", "words"),
    [
        (0.021, 0.01, "refused: divergence from full precision 0.021, 0.02 without learned weights"),
        (0.005, 0.031, "refused: divergence on shifted data 0.031, 0.03 without learned weights"),
    ],
)
def test_a_recovery_that_loses_on_other_data_is_refused(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch, divergence: float, shifted: float, words: str
) -> None:
    pool_of(monkeypatch, recovered(divergence, shifted=shifted))
    recover_maps(store, job_id, ["1"], SETTINGS)
    trial = store.trials(job_id)[-1]
    assert (trial.state, trial.message, trial.feasible) == (TrialState.REJECTED, words, False)
    assert told(store, job_id)[1] == ("recovered", f"Trial 2 is trial 1 with learned weights; {words}")
    assert store.fronts(job_id)[-1].members == (0,)


@pytest.mark.parametrize(
    ("found", "event"),
    [
        (kept("its divergence is 0.02"), "Trial 1 keeps the model's own weights: its divergence is 0.02"),
        (kept(), "Trial 1 keeps the model's own weights: no linear or convolutional layer has integer weights"),
        (PoolError("a worker died"), "Trial 1 could not be recovered: a worker died"),
    ],
    ids=["kept", "no block", "error"],
)
def test_what_brings_nothing_is_told(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch, found: Any, event: str
) -> None:
    pool_of(monkeypatch, found)
    recover_maps(store, job_id, ["1"], SETTINGS)
    assert len(store.trials(job_id)) == 2
    assert told(store, job_id)[1][1].startswith(event)
    assert store.job(job_id).state is JobState.FINISHED


def test_wrong_picks_are_errors_before_anything_starts(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_of(monkeypatch)
    with pytest.raises(NotFoundError, match="no trial 7"):
        recover_maps(store, job_id, ["7"], SETTINGS)
    assert told(store, job_id) == []


def test_a_job_that_still_searches_is_not_recovered(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(monkeypatch)
    store.change_job(job_id, lifecycle.requeued)
    with pytest.raises(ConflictError, match="is queued; wait until its search has ended, or pause it first"):
        recover_maps(store, job_id, ["1"], SETTINGS)
    assert pool.asked == []


def test_an_error_leaves_the_job_as_it_was(store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_of(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        recover_maps(store, job_id, ["1"], SETTINGS)
    assert store.job(job_id).state is JobState.FINISHED
    assert told(store, job_id)[-1] == ("recovery_ended", "Recovery stopped by its user")


def test_a_paused_job_that_is_cancelled_while_it_is_recovered_is_cancelled(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.change_job(job_id, lambda job, at: lifecycle.Change(job=replace(job, state=JobState.PAUSED)))

    class Cancelling(RecoveringPool):
        def recover(self, *arguments: Any) -> Recovered:
            cancel(store, job_id)
            return super().recover(*arguments)

    monkeypatch.setattr(run, "build_pool", lambda *_: Cancelling([recovered(0.005)]))
    recover_maps(store, job_id, ["1"], SETTINGS)
    job = store.job(job_id)
    assert (job.state, job.order, job.leased_until) == (JobState.CANCELLED, None, None)
    assert len(store.trials(job_id)) == 3, "what was learned is kept"


def test_a_recovered_job_still_says_why_its_search_ended(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_of(monkeypatch, recovered(0.005))
    recover_maps(store, job_id, ["1"], SETTINGS)
    with pytest.raises(ConflictError, match=r"no budget left\. Search finished: done"):
        check_resumable(store, store.job(job_id))


def test_a_job_file_may_ask_for_recovery_after_the_search(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(monkeypatch, recovered(0.005))
    monkeypatch.setattr(run, "obtain_probes", lambda *_: None)
    monkeypatch.setattr(run, "Search", lambda *_: SimpleNamespace(run=lambda: "done"))
    document = SPEC | {"recovery": {"picks": ["promising"], "epochs": 3, "time_limit_s": "2min"}, "search": {"seed": 5}}
    job = store.job(job_id)
    store.change_job(
        job_id, lambda job, at: lifecycle.Change(job=replace(job, document=JobSpec.parse(document).dump()))
    )
    assert job.spec.recovery is None
    assert run_job(store, job_id).state is JobState.FINISHED
    ((*_, settings),) = pool.asked
    assert (settings.epochs, settings.seed) == (3, 5)
    assert store.trials(job_id)[-1].kind is TrialKind.RECOVERED


def test_a_search_without_maps_to_recover_succeeds(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_of(monkeypatch)
    monkeypatch.setattr(run, "Search", lambda *_: SimpleNamespace(run=lambda: "done"))
    document = SPEC | {"recovery": {"picks": ["most-accurate"]}}
    store.change_job(
        job_id, lambda job, at: lifecycle.Change(job=replace(job, document=JobSpec.parse(document).dump()))
    )
    assert run_job(store, job_id).state is JobState.FINISHED
    messages = [event.message for event in store.events(job_id) if event.kind == "recovery_failed"]
    assert messages == [
        "Not recovered: recovery learns integer weights, but the map of trial 0 has none; take another trial"
    ]
