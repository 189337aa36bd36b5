"""The end of a run: what a driver records if its user gives another order while it stops."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.client.actions import cancel, pause, resume, submit
from autotune.errors import ConflictError
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.records import JobState, Order
from autotune.jobs.spec import JobSpec
from autotune.search import run
from autotune.search.run import run_job
from autotune.search.stages import Stages
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from workers.errors import PoolError
from workers.measurement import Environment
from workers.progress import Report, Stage, Step
from workers.setup import Calibration, ModelDescription, PoolSettings, WorkerSetup


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def job_id(store: MemoryStore) -> str:
    return submit(store, JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}})).id


def searching(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    """Let a search do something else."""
    monkeypatch.setattr(run, "_search", lambda *_: work())


def test_a_job_that_is_cancelled_while_it_pauses_is_cancelled(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pauses() -> None:
        pause(store, job_id)
        cancel(store, job_id)
        raise OrderedError(Order.PAUSE)

    searching(monkeypatch, pauses)
    with pytest.raises(OrderedError):
        run_job(store, job_id)
    assert store.job(job_id).state is JobState.CANCELLED
    assert [told.message for told in store.events(job_id)] == ["Search started", "Cancelled by its user"]


def test_a_job_that_is_resumed_while_it_stops_waits_for_a_driver(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops() -> None:
        cancel(store, job_id)
        resume(store, job_id)
        raise OrderedError(Order.CANCEL)

    searching(monkeypatch, stops)
    with pytest.raises(OrderedError):
        run_job(store, job_id)
    assert store.job(job_id).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("error", "state"), [(PoolError("no workers"), JobState.FAILED), (KeyboardInterrupt(), JobState.PAUSED)]
)
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_run_that_ends_badly_is_recorded(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: JobState,
    cancelled: bool,
) -> None:  # fmt: skip
    def ends() -> None:
        if cancelled:
            cancel(store, job_id)
        raise error

    searching(monkeypatch, ends)
    with pytest.raises(type(error)):
        run_job(store, job_id)
    assert store.job(job_id).state is (JobState.CANCELLED if cancelled else state)
    assert store.job(job_id).error == ("no workers" if state is JobState.FAILED and not cancelled else None)


def described(kind: str) -> ModelDescription:
    environment = Environment(hardware="cpu", kind=kind, backend="x86", threads=2, load=0.5, versions={})
    layer = Layer(
        name="fc", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
        flops=48, calls=1, order=0, group="fc",
    )  # fmt: skip
    return ModelDescription(
        fingerprint="f" * 64, layers=(layer,), refusals={"fc": {}}, layer_bytes={"fc": {"fp32": 64}}, other_bytes=0,
        calibration=Calibration(ranges={}, samples=64, seconds=0.5), environment=environment,
    )  # fmt: skip


class Pools:
    """Builds pools whose workers are of one kind, and notes what they were asked for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.weight_bits: dict[str, int] = {}
        self.kernels: dict[str, dict[str, str]] = {}
        self.settings: list[PoolSettings] = []
        self.setups: list[WorkerSetup] = []

    def build(self, name: str, setup: WorkerSetup, settings: PoolSettings, report: Report) -> Any:
        report(Step(stage=Stage.LOADING))
        self.settings.append(settings)
        self.setups.append(setup)
        description = replace(described(self.kind), weight_bits=self.weight_bits, kernels=self.kernels)
        return SimpleNamespace(describe=lambda: description, slots=1, close=lambda: None)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Pools:
    """Let jobs find nothing to search, at once."""
    made = Pools("AMD EPYC (AVX2)")
    monkeypatch.setattr(run, "build_pool", made.build)
    monkeypatch.setattr(run, "obtain_probes", lambda *_: None)
    monkeypatch.setattr(run, "Search", lambda *_: SimpleNamespace(run=lambda: "done"))
    return made


def test_a_job_asks_for_the_kind_it_was_started_on(store: MemoryStore, job_id: str, pools: Pools) -> None:
    run_job(store, job_id)
    run_job(store, job_id)
    assert [settings.kind for settings in pools.settings] == ["", "AMD EPYC (AVX2)"]


def test_a_job_goes_on_where_it_was_started_only(store: MemoryStore, job_id: str, pools: Pools) -> None:
    run_job(store, job_id)
    pools.kind = "AMD EPYC (AVX2, AVX-512)"
    both = r"was started on 'AMD EPYC \(AVX2\)', but this worker measures on 'AMD EPYC \(AVX2, AVX-512\)'"
    with pytest.raises(ConflictError, match=f"{both}; .* autotune clone {job_id}"):
        run_job(store, job_id)
    assert store.job(job_id).state is JobState.FAILED


@pytest.mark.parametrize(("recorded", "bits"), [({"fc": 7}, 7), ({}, 8)])
def test_a_job_goes_on_with_its_bits(
    store: MemoryStore, job_id: str, pools: Pools, recorded: dict[str, int], bits: int
) -> None:
    pools.weight_bits = recorded
    run_job(store, job_id)
    run_job(store, job_id)
    assert [setup.known.weight_bits for setup in pools.setups] == [None, {"fc": bits}], "those of before had 8"


def test_a_job_goes_on_with_its_kernels(store: MemoryStore, job_id: str, pools: Pools) -> None:
    pools.kernels = {"fc": {"int8_static": "fbgemm"}}
    run_job(store, job_id)
    run_job(store, job_id)
    assert [setup.known.kernels for setup in pools.setups] == [{}, pools.kernels]


def test_a_job_recorded_before_kinds_of_hardware_continues_anywhere(
    store: MemoryStore, job_id: str, pools: Pools
) -> None:  # fmt: skip
    pools.kind = ""
    run_job(store, job_id)
    pools.kind = "AMD EPYC (AVX2)"
    assert run_job(store, job_id).state is JobState.FINISHED


def test_a_job_that_finished_first_stays_finished(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finishes() -> str:
        cancel(store, job_id)
        return "all trials are measured"

    searching(monkeypatch, finishes)
    assert run_job(store, job_id).state is JobState.FINISHED
    assert [told.kind for told in store.events(job_id)] == ["started", "finished"]


def test_loading_counts_in_the_time_that_is_spent(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading_s: list[float] = []

    def ledger(*arguments: Any, **settings: Any) -> None:
        loading_s.append(settings["loading_s"])

    pool = SimpleNamespace(describe=lambda: SimpleNamespace(loading_seconds=7.5), slots=1, close=lambda: None)
    monkeypatch.setattr(run, "build_pool", lambda *_: pool)
    monkeypatch.setattr(run, "_describe", lambda store, job, description: job)
    monkeypatch.setattr(run, "searches_of", lambda *_: [])
    monkeypatch.setattr(run, "_check_spaces", lambda *_: None)
    monkeypatch.setattr(run, "Ledger", ledger)
    monkeypatch.setattr(run, "Search", lambda *_: SimpleNamespace(run=lambda: "done"))
    run_job(store, job_id)
    assert loading_s == [7.5]


def test_a_finished_job_says_how_long_its_stages_took(
    store: MemoryStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SimpleNamespace(describe=lambda: SimpleNamespace(loading_seconds=7.5), slots=1, close=lambda: None)
    monkeypatch.setattr(run, "build_pool", lambda *_: pool)
    monkeypatch.setattr(run, "_describe", lambda store, job, description: job)
    monkeypatch.setattr(run, "searches_of", lambda *_: [])
    monkeypatch.setattr(run, "_check_spaces", lambda *_: None)

    def search(job: object, space: object, pool: object, stages: Stages, *_: object) -> SimpleNamespace:
        def go() -> str:
            stages.stage("Measuring full precision")
            time.sleep(1.0)
            stages.stage("Searching")
            return "done"

        return SimpleNamespace(run=go)

    monkeypatch.setattr(run, "Search", search)
    run_job(store, job_id)
    (spent,) = [event.message for event in store.events(job_id) if event.kind == "time_spent"]
    assert spent == "Time: starting workers 0 s, measuring full precision 1 s, searching 0 s"
