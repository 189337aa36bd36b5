"""The search of one job on a pool that answers at once: how it ends, and what it promises."""

import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autotune.client.actions import change_plan, submit
from autotune.jobs import budget
from autotune.jobs.budget import MOST_FINAL, searched
from autotune.jobs.front import compute_front, needing_final_run, pick, without_superseded
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Silent
from autotune.jobs.records import JobRecord, TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.search import backend_search
from autotune.search.backend_search import searches_of
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.loop import Probe, Search
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from workers.candidate import Candidate, Outcome
from workers.measurement import Environment, Failure, FailureCause, LatencySamples, Measurement, Split, Workload
from workers.setup import BackendDescription, Calibration, ModelDescription
from workers.timing.estimates import Figure

LAYERS = tuple(
    Layer(
        name=f"fc{i}", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
        flops=48, calls=1, order=i, group=f"fc{i}",
    )
    for i in range(6)
)  # fmt: skip
ENVIRONMENT = Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={})
DESCRIPTION = ModelDescription(
    fingerprint="f" * 64,
    layers=LAYERS,
    refusals={layer.name: {} for layer in LAYERS},
    layer_bytes={layer.name: {"fp32": 64, "bf16": 32, "int8_dynamic": 16} for layer in LAYERS},
    other_bytes=8,
    calibration=Calibration(ranges={}, samples=64, seconds=0.5),
    environment=ENVIRONMENT,
)
SEARCH = TrialKind.SEARCH
FASTER = {"fp32": 0.0, "bf16": 0.05, "int8_dynamic": 0.1}
LOSS = {"fp32": 0.0, "bf16": 1e-4, "int8_dynamic": 1e-2}


class ScriptedPool:
    """Measures a model whose layers' effects add up; a search's latencies are off by ``luck``, final ones are true."""

    queues = True

    def __init__(
        self, slots: int = 1, luck: float = 0.05, fails: Callable[[Candidate], bool] = lambda _: False
    ) -> None:
        self.slots, self.luck, self.fails = slots, luck, fails
        self.trial_s = 1.0
        #: Seconds that every measurement says it waited for the device.
        self.waited_s = 0.0
        #: Candidates that were there at each wait.
        self.waiting: list[int] = []
        self.gives_up = False
        self.candidates: list[Candidate] = []
        self._done: list[Outcome] = []

    def submit(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        result = Failure(cause=FailureCause.CRASH, message="died", attempts=3) if self.fails(candidate) else None
        self._done.append(
            Outcome(candidate=candidate, result=result or self.measure(candidate), attempts=1, worker="here")
        )

    def wait(self, timeout_s: float) -> list[Outcome]:
        done, self._done = self._done, []
        self.waiting.append(len(done))
        return done

    def measure(self, candidate: Candidate) -> Measurement:
        choices = candidate.choices.values()
        loss = sum(LOSS[choice] for choice in choices)
        noise = 0.0 if candidate.final else self.luck * self._draw(candidate.choices)
        repeats = 500 if candidate.final else 60
        latency = LatencySamples(
            batch_size=1,
            candidate_ms=np.full(repeats, 10.0 * true_ratio(candidate.choices) * (1 + noise)),
            reference_ms=np.full(repeats // 5, 10.0),
            gave_up=self.gives_up and candidate.incumbents != (),
        )
        return Measurement(
            accuracy=0.9 - loss, divergence=loss, weight_bytes=DESCRIPTION.weight_bytes(candidate.choices),
            latency=(latency,), working_bytes=8, held_out=(0.8 - loss, 0.8) if candidate.final else None,
            seconds=self.trial_s, waited_seconds=self.waited_s, forward_seconds=0.9,
            environment=ENVIRONMENT,
        )  # fmt: skip

    def _draw(self, choices: Mapping[str, str]) -> float:
        """Return a number from -1 to 1 that belongs to the map."""
        return zlib.crc32(repr(sorted(choices.items())).encode()) / 2**31 - 1


def true_ratio(choices: Mapping[str, str]) -> float:
    return 1.0 - sum(FASTER[choice] for choice in choices.values())


def searched_job(
    pool: ScriptedPool,
    constraints: Mapping[str, Any] | None = None,
    *,
    description: ModelDescription = DESCRIPTION,
    backend: Any = "auto",
    **search: Any,
) -> tuple[MemoryStore, JobRecord, str]:
    spec = JobSpec.parse(
        {
            "name": "scripted",
            "backend": backend,
            "task": {"name": "digits-cnn"},
            "objectives": ["latency_p50_ms", "divergence"],
            "search": {"choices": list(FASTER), "sampler": "nsga2", "trials": 40} | search,
            "measurement": {"repeats": 60},
            "constraints": constraints or {},
        }
    )
    store = MemoryStore()
    job = store.change_job(submit(store, spec).id, with_fields(0, description=description))
    return store, job, go_on(store, job, pool)


def go_on(
    store: MemoryStore, job: JobRecord, pool: ScriptedPool, loading_s: float = 0.0, probe: Probe = lambda *_: None
) -> str:
    record = store.job(job.id)
    lease = Lease(store, record)
    ledger = Ledger(store, record, Silent(), loading_s=loading_s)
    return Search(record, searches_of(record, pool.slots), pool, Silent(), lease, ledger, probe).run()  # type: ignore[arg-type]


def finals(trials: list[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.kind is TrialKind.FINAL]


@pytest.mark.parametrize(("slots", "counts"), [(1, False), (2, True)])
def test_waiting_for_the_device_counts_only_if_workers_wait_for_each_other(slots: int, counts: bool) -> None:
    pool = ScriptedPool(slots)
    pool.waited_s = 1e6
    store, job, _ = searched_job(pool, trials=5)
    assert (store.job(job.id).elapsed_s > 0.0) is counts


def test_full_precision_is_as_fast_as_itself_however_noisy_it_was() -> None:
    store, job, _ = searched_job(ScriptedPool(1), trials=3)
    for trial in store.trials(job.id):
        itself = set(trial.choices.values()) == {"fp32"}
        assert (trial.figures["latency_ratio"] == Figure(value=1.0)) is itself


@pytest.mark.parametrize("slots", [1, 3])
def test_the_picks_are_measured_again_and_promise_no_luck(slots: int) -> None:
    pool = ScriptedPool(slots)
    store, job, why = searched_job(pool)
    trials, objectives = store.trials(job.id), job.spec.objectives
    assert why == "all trials of the budget were measured"
    assert searched(trials) == 40
    assert 2 <= len(finals(trials)) <= MOST_FINAL
    assert needing_final_run(trials, objectives) == []
    for how in ("knee", "fastest", "smallest", "most-accurate"):
        picked = pick(trials, how, objectives)
        assert picked.kind is TrialKind.FINAL
        assert picked.figures["latency_ratio"].value == pytest.approx(true_ratio(picked.choices))
        assert picked.figures["held_out_accuracy_drop"].value == pytest.approx(picked.figures["divergence"].value / 0.8)
        assert "latency_p99_ms" in picked.figures
    luckiest = min(trials[: searched(trials)], key=lambda trial: trial.figures["latency_ratio"].value)
    assert luckiest.figures["latency_ratio"].value < true_ratio(luckiest.choices)


def test_the_front_holds_each_map_once_with_the_figures_that_count() -> None:
    store, job, _ = searched_job(ScriptedPool())
    trials, front = store.trials(job.id), store.fronts(job.id)[-1]
    members = [trial for trial in trials if trial.number in front.members]
    assert len({trial.key for trial in members}) == len(members)
    measured_again = {trial.key for trial in finals(trials)}
    assert all(trial.kind is TrialKind.FINAL for trial in members if trial.key in measured_again)
    first = next(trial for trial in trials if trial.key in measured_again)
    assert pick(trials, str(first.number), job.spec.objectives).kind is TrialKind.FINAL


def test_a_finished_job_has_nothing_to_measure_again() -> None:
    store, job, _ = searched_job(ScriptedPool())
    again = ScriptedPool()
    go_on(store, job, again)
    assert again.candidates == []


def test_a_final_measurement_that_fails_leaves_the_first_one_standing() -> None:
    pool = ScriptedPool(fails=lambda candidate: candidate.final)
    store, job, _ = searched_job(pool)
    trials = store.trials(job.id)
    assert finals(trials)
    assert all(trial.state is TrialState.FAILED for trial in finals(trials))
    assert pick(trials, "fastest", job.spec.objectives).kind is not TrialKind.FINAL
    assert {trial.key for trial in without_superseded(trials)} == {trial.key for trial in trials}


def test_time_is_kept_for_the_final_measurements() -> None:
    # A trial takes a second by its own account: four finals of 500 passes would take 33 s.
    store, job, why = searched_job(ScriptedPool(), time_limit_s=1e-6)
    assert why == "the time limit was reached"
    trials = store.trials(job.id)
    assert searched(trials) == 1
    assert finals(trials) == []


def test_the_time_limit_holds_for_loading_too() -> None:
    store, job, _ = searched_job(ScriptedPool(), time_limit_s=1e-6)
    change_plan(store, job.id, time_limit_s=100.0)
    assert go_on(store, store.job(job.id), ScriptedPool(), loading_s=100.0) == "the time limit was reached"
    assert searched(store.trials(job.id)) == 1


def test_only_the_searchs_own_candidates_have_rivals_and_may_be_given_up() -> None:
    pool = ScriptedPool()
    pool.gives_up = True
    store, job, _ = searched_job(pool)
    trials = {trial.number: trial for trial in store.trials(job.id)}
    assert all(not candidate.incumbents for candidate in pool.candidates if trials[candidate.number].kind is not SEARCH)
    given_up = [trials[candidate.number] for candidate in pool.candidates if candidate.incumbents]
    assert len(given_up) == 40 - 3
    assert {trial.state for trial in given_up} == {TrialState.REJECTED}
    assert {trial.message for trial in given_up} == {
        "given up after 60 passes: slower than a limit, or than maps that lose no more"
    }
    assert "latency_ratio" in given_up[0].figures  # the sampler learns from what was seen
    assert not {trial.number for trial in given_up} & set(store.fronts(job.id)[-1].members)


def test_every_recorded_trial_is_logged_by_its_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="autotune")
    store, job, _ = searched_job(ScriptedPool(fails=lambda candidate: candidate.final))
    told = [(record.__dict__["trial"], record.getMessage()) for record in caplog.records]
    assert [number for number, _ in told] == [trial.number for trial in store.trials(job.id)]
    assert {message for _, message in told} == {"complete", "failed: died"}


@pytest.mark.parametrize("constraints", [{}, {"accuracy_drop": {"max": 0.02}}])
def test_fronts_kept_up_to_date_are_the_fronts_of_all_trials(constraints: dict[str, Any]) -> None:
    store, job, _ = searched_job(ScriptedPool(slots=2), constraints=constraints)
    trials = store.trials(job.id)
    for front in store.fronts(job.id):
        assert front == compute_front(trials[: front.trials], ("latency_p50_ms", "divergence"))


@pytest.mark.parametrize(("trial_s", "most"), [(1000.0, 4), (1e-9, 8)])
def test_candidates_are_kept_ready_if_workers_would_wait_for_the_driver(trial_s: float, most: int) -> None:
    pool = ScriptedPool(slots=4)
    pool.trial_s = trial_s
    searched_job(pool, sampler="random", trials=60)
    assert max(pool.waiting) == most


def test_no_candidate_is_kept_ready_where_the_driver_would_wait_for_it() -> None:
    pool = ScriptedPool(slots=1)
    pool.trial_s, pool.queues = 1e-9, False
    searched_job(pool, sampler="random", trials=20)
    assert max(pool.waiting) == 1


def test_with_limits_the_fastest_map_within_them_is_measured_again_first() -> None:
    store, job, _ = searched_job(ScriptedPool(), constraints={"accuracy_drop": {"max": 0.05}})
    trials = store.trials(job.id)
    before = [trial for trial in trials if trial.kind is not TrialKind.FINAL]
    assert (
        finals(trials)[0].key
        == pick(before, "fastest", job.spec.objectives).key
        != pick(before, "knee", job.spec.objectives).key
    )


def test_a_uniform_map_is_known_as_such_whoever_proposes_it() -> None:
    store, job, _ = searched_job(ScriptedPool(), time_limit_s=1e-6)
    change_plan(store, job.id, time_limit_s=1e6, trials=729)  # all maps of the space
    go_on(store, store.job(job.id), ScriptedPool(), loading_s=5e5)  # beyond the share of uniform maps
    trials = store.trials(job.id)
    assert (trials[1].label, trials[2].label) == ("uniform int8_dynamic", None)
    (uniform,) = [t for t in trials if set(t.choices.values()) == {"bf16"} and t.kind is not TrialKind.FINAL]
    assert (uniform.kind, uniform.label) == (TrialKind.BASELINE, "uniform bf16")


@pytest.mark.parametrize(
    ("left_s", "most_divergence", "probed"),
    [
        pytest.param(11.0, 1.0, False, id="a few maps"),
        pytest.param(11.0, 1e-4, True, id="a few maps, and no uniform one is within the limits"),
        pytest.param(9.0, 1e-4, False, id="one map"),
        pytest.param(400.0, 1.0, True, id="many maps"),
    ],
)
def test_layers_are_probed_only_if_the_time_left_suffices_for_some_maps(
    left_s: float, most_divergence: float, probed: bool
) -> None:
    budgets: list[float] = []
    limits = {"divergence": {"max": most_divergence}}
    store, job, _ = searched_job(ScriptedPool(), limits, time_limit_s=1e-6, sampler="sensitivity")
    change_plan(store, job.id, time_limit_s=1e3)
    go_on(
        store,
        store.job(job.id),
        ScriptedPool(),
        loading_s=1e3 - left_s,
        probe=lambda seconds, _: budgets.append(seconds),
    )
    assert bool(budgets) is probed
    labels = {trial.label for trial in store.trials(job.id)}
    assert "uniform int8_dynamic" in labels
    assert probed or "uniform bf16" in labels


def test_a_map_whose_divergence_breaks_its_limit_is_not_timed() -> None:
    pool = ScriptedPool()
    searched_job(pool, {"divergence": {"max": 0.02}, "shifted_divergence": {"max": 0.5}}, trials=6)
    limits = next(candidate.limits for candidate in pool.candidates if candidate.limits)
    assert limits[Split.EVALUATION].holds(0.0, 0.02)
    assert not limits[Split.EVALUATION].holds(1.0, 0.021)
    assert limits[Split.SHIFTED].most_divergence == 0.5


def test_only_full_precision_and_final_measurements_time_everything() -> None:
    pool = ScriptedPool()
    searched_job(pool, trials=6)
    in_full = [candidate.final or candidate.number == 0 for candidate in pool.candidates]
    assert 1 < sum(in_full) < len(in_full) - 2
    for candidate, everything in zip(pool.candidates, in_full, strict=True):
        assert candidate.workloads == (None if everything else (Workload.FORWARD,))


OTHER = replace(ENVIRONMENT, backend="onnxruntime")
ON_BOTH = replace(
    DESCRIPTION,
    others={
        "onnxruntime": BackendDescription(
            refusals={layer.name: {"bf16": "no such kernel"} for layer in LAYERS},
            layer_bytes={layer.name: {"fp32": 64, "int8_dynamic": 12} for layer in LAYERS},
            other_bytes=16,
            environment=OTHER,
        )
    },
)


class TwoRuntimes(ScriptedPool):
    """Another runtime whose full precision takes a share of the reference's time, and whose layers save as much."""

    def __init__(self, share: float, **given: Any) -> None:
        super().__init__(luck=0.0, **given)
        self.share = share

    def measure(self, candidate: Candidate) -> Measurement:
        found = super().measure(candidate)
        if not candidate.backend:
            return found
        (latency,) = found.latency
        slower = replace(latency, candidate_ms=latency.candidate_ms * self.share)
        weight = ON_BOTH.on(candidate.backend).weight_bytes(candidate.choices)
        divergence = found.divergence + 1e-6
        return replace(found, latency=(slower,), environment=OTHER, weight_bytes=weight, divergence=divergence)


def on_both(pool: ScriptedPool, constraints: Mapping[str, Any] | None = None, **search: Any) -> list[TrialRecord]:
    store, job, _ = searched_job(pool, constraints, description=ON_BOTH, backend=["x86", "onnxruntime"], **search)
    return store.trials(job.id)


@pytest.mark.parametrize("sampler", ["sensitivity", "nsga2", "random"])
def test_every_backend_measures_full_precision_and_its_uniform_maps_first(sampler: str) -> None:
    trials = on_both(TwoRuntimes(0.5), sampler=sampler)
    first = [(trial.label, trial.backend) for trial in trials[:5]]
    assert first[:2] == [("fp32", ""), ("fp32", "onnxruntime")]
    assert set(first[2:]) == {
        ("uniform bf16", ""), ("uniform int8_dynamic", ""), ("uniform int8_dynamic", "onnxruntime")
    }  # fmt: skip
    assert len({trial.key for trial in trials if trial.kind is not TrialKind.FINAL}) == len(
        [trial for trial in trials if trial.kind is not TrialKind.FINAL]
    )
    assert trials[1].figures["latency_ratio"].value == pytest.approx(0.5), "relative to the first backend"
    assert trials[1].figures["weight_memory_mib"].value == pytest.approx(400 / 2**20)


def test_recipes_come_before_uniform_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {"onnxruntime": ("int8_dynamic", "fp32")}
    monkeypatch.setattr(backend_search, "recipe_of", lambda _, backend: recipes.get(backend, ()))
    trials = on_both(TwoRuntimes(0.5), sampler="random")
    assert [trial.backend for trial in trials[2:4]] == ["onnxruntime", ""]


@pytest.mark.parametrize(("share", "winner"), [(0.5, "onnxruntime"), (2.5, "")])
def test_trials_go_where_the_gain_is(share: float, winner: str) -> None:
    trials = on_both(TwoRuntimes(share), sampler="sensitivity", trials=10)  # the front there has 7 maps
    searched_there = [trial.backend for trial in trials if trial.kind is SEARCH]
    assert searched_there.count(winner) >= 0.75 * len(searched_there)
    best = pick(trials, "fastest", ["latency_p50_ms", "divergence"])
    assert best.backend == winner


def test_final_measurements_run_where_the_map_did() -> None:
    pool = TwoRuntimes(0.5)
    trials = on_both(pool, sampler="sensitivity")
    assert any(trial.backend for trial in finals(trials))
    for trial in finals(trials):
        alike = [t for t in trials if dict(t.choices) == dict(trial.choices) and t.kind is not TrialKind.FINAL]
        assert alike, "a map that was searched"
        assert {t.key == trial.key for t in alike if t.backend == trial.backend} <= {True}
    assert [c.backend for c in pool.candidates if c.final] == [trial.backend for trial in finals(trials)]


def test_a_backend_whose_full_precision_fails_is_dropped() -> None:
    pool = TwoRuntimes(0.5, fails=lambda candidate: bool(candidate.backend))
    trials = on_both(pool, sampler="sensitivity")
    (failed,) = [trial for trial in trials if trial.backend]
    assert (failed.number, failed.state, failed.label) == (1, TrialState.FAILED, "fp32")
    assert any(trial.kind is SEARCH for trial in trials)


@pytest.mark.parametrize("sampler", ["sensitivity", "nsga2"])
def test_a_search_on_several_backends_continues_after_a_restart(sampler: str) -> None:
    pool = TwoRuntimes(0.5)
    store, job, _ = searched_job(pool, description=ON_BOTH, backend=["x86", "onnxruntime"], sampler=sampler, trials=6)
    before = store.trials(job.id)
    change_plan(store, job.id, trials=12)
    go_on(store, store.job(job.id), pool)
    after = store.trials(job.id)
    assert len(after) > len(before)
    searched_keys = [trial.key for trial in after if trial.kind is not TrialKind.FINAL]
    assert len(set(searched_keys)) == len(searched_keys), "no map is measured twice"


@pytest.mark.parametrize("sampler", ["sensitivity", "nsga2"])
def test_a_search_learns_nothing_from_recovered_maps(sampler: str) -> None:
    measured = []
    for is_recovered in (False, True):
        pool = TwoRuntimes(0.5)
        store, job, _ = searched_job(
            pool, description=ON_BOTH, backend=["x86", "onnxruntime"], sampler=sampler, trials=8
        )
        if is_recovered:
            for number, of in enumerate(finals(store.trials(job.id)), start=100):
                better = {**of.figures, "divergence": Figure(value=1e-9)}
                child = replace(of, number=number, kind=TrialKind.RECOVERED, key=f"{number}", parent=of.number)
                store.record([TrialResult(trial=replace(child, figures=better))], epoch=job.epoch)
        change_plan(store, job.id, trials=16)
        go_on(store, store.job(job.id), pool)
        measured.append([(candidate.choices, candidate.backend, candidate.final) for candidate in pool.candidates])
        assert searched(store.trials(job.id)) == 16
    assert measured[0] == measured[1]


@pytest.mark.parametrize(("share", "limit", "where"), [(0.5, 2.5e-2, "onnxruntime"), (2.5, 2.5e-4, "")])
def test_the_recommended_map_is_measured_on_the_other_backends_that_can_run_it(
    share: float, limit: float, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MOST_FINAL", 40)  # of these maps, many are equally fast
    trials = on_both(TwoRuntimes(share), {"divergence": {"max": limit}}, sampler="sensitivity")
    best = pick(trials, "fastest", ["latency_p50_ms", "divergence"])
    assert best.backend == where
    same = [t for t in without_superseded(trials) if dict(t.choices) == dict(best.choices) and t.backend != where]
    if where:
        assert set(best.choices.values()) == {"fp32", "int8_dynamic"}
        (there,) = same
        assert there.figures["latency_ratio"].value == pytest.approx(best.figures["latency_ratio"].value / share)
    else:
        assert "bf16" in best.choices.values(), "which the other backend refuses"
        assert same == []
    keys = [(trial.key, trial.kind is TrialKind.FINAL) for trial in trials]
    assert len(set(keys)) == len(keys)
