"""The contract of ``workers.pools.base.Pool``, run over both implementations."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from search_spaces.choice import CHOICES, FULL_PRECISION
from search_spaces.errors import AutotuneError
from workers.candidate import Candidate, Incumbent, Outcome, QualityLimit
from workers.device.processor import this_processor
from workers.errors import PoolError, TaskError
from workers.measurement import Failure, FailureCause, Measurement, Split
from workers.pools.base import MAX_ATTEMPTS, Pool
from workers.pools.build import build_pool
from workers.progress import Report, Stage, Step, silent
from workers.recovered import RecoverySettings, digest
from workers.setup import Estimator, KnownKernels, MeasurementSettings, PoolSettings, WorkerSetup
from workers.timing.device_lock import DeviceLock

TASK_FILE = str(Path(__file__).parents[1] / "data" / "fragile_task.py")
FULL = {"0": "fp32", "2": "fp32"}
MIXED = {"0": "int8_static", "2": "int8_dynamic"}

Start = Callable[..., Pool]


def setup(task: str = "fragile", *, repeats: int = 20, **parameters: Any) -> WorkerSetup:
    settings = MeasurementSettings(repeats=repeats, final_repeats=120, warmup_s=0.0, threads=1)
    return WorkerSetup(task=task, task_parameters=parameters, measurement=settings, task_file=TASK_FILE)


@pytest.fixture(scope="module")
def cluster(ray_token: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", ray_token)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(params=["inline", "ray"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start pools of one kind and close them in the end."""
    pools: list[Pool] = []
    if request.param == "ray":
        request.getfixturevalue("cluster")

    def start_pool(worker_setup: WorkerSetup, report: Report = silent, **settings: Any) -> Pool:
        pools.append(build_pool(request.param, worker_setup, PoolSettings(cpus=1, **settings), report))
        return pools[-1]

    yield start_pool
    for pool in pools:
        pool.close()


@pytest.fixture
def start_ray(cluster: None) -> Iterator[Start]:
    pools: list[Pool] = []

    def start_pool(worker_setup: WorkerSetup, report: Report = silent, **settings: Any) -> Pool:
        pools.append(build_pool("ray", worker_setup, PoolSettings(**({"cpus": 1} | settings)), report))
        return pools[-1]

    yield start_pool
    for pool in pools:
        pool.close()


def drain(pool: Pool, count: int) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    for _ in range(120):
        for outcome in pool.wait(1.0):
            assert outcome.candidate.number not in outcomes, "an outcome came back twice"
            outcomes[outcome.candidate.number] = outcome
        if len(outcomes) == count:
            break
    assert pool.wait(0.0) == []
    return outcomes


def wait_for(check: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def free_cpus() -> float:
    """CPUs of the cluster that no worker has."""
    return float(ray.available_resources().get("CPU", 0.0))


def test_description_lists_layers_choices_and_exact_bytes(start: Start) -> None:
    description = start(setup()).describe()
    assert [layer.name for layer in description.layers] == ["0", "2"]
    assert set(description.calibration.ranges) == {"0", "2"}
    assert description.weight_bytes(FULL) == 4 * (32 * 64 + 64 + 64 * 10 + 10)
    assert description.weight_bytes(MIXED) < description.weight_bytes(FULL) / 2
    assert "fp8_static" in description.refusals["0"]
    assert "int8_static" not in description.refusals["0"]
    assert {shape[-1] for layer in description.layers for shape in layer.latency_shapes} == {32, 64}
    assert description.kernels["0"].keys() == description.layer_bytes["0"].keys() - {"fp32"}
    assert set(description.weight_bits.values()) == {this_processor().int8_weight_bits}


def test_workers_take_the_bits_they_are_given(start: Start) -> None:
    bits = {"0": 7, "2": 8}
    description = start(dataclasses.replace(setup(), known=KnownKernels(weight_bits=bits))).describe()
    assert description.weight_bits == bits


def test_workers_take_the_kernels_they_are_given(start: Start) -> None:
    given = {"0": {"int8_static": "fp32"}}
    assert (
        start(dataclasses.replace(setup(), known=KnownKernels(kernels=given))).describe().kernels["0"]["int8_static"]
        == "fp32"
    )


def test_every_candidate_comes_back_once(start: Start) -> None:
    pool = start(setup(), count=2)
    for number in range(5):
        pool.submit(Candidate(number=number, choices=MIXED if number % 2 else FULL))
    outcomes = drain(pool, 5)
    assert sorted(outcomes) == list(range(5))
    assert all(isinstance(outcome.result, Measurement) and outcome.attempts == 1 for outcome in outcomes.values())


def test_measurement_is_complete(start: Start) -> None:
    pool = start(setup())
    pool.submit(Candidate(number=7, choices=MIXED))
    measurement = drain(pool, 1)[7].result
    assert isinstance(measurement, Measurement)
    assert 0.5 < measurement.accuracy <= 1.0
    assert 0.0 < measurement.divergence < 0.1
    assert measurement.weight_bytes == pool.describe().weight_bytes(MIXED)
    assert [len(latency.candidate_ms) for latency in measurement.latency] == [20]
    assert measurement.working_bytes is not None
    assert measurement.working_bytes > 0
    assert 0 < measurement.forward_seconds <= measurement.seconds
    assert measurement.environment.threads == 1


def test_full_precision_diverges_by_nothing(start: Start) -> None:
    pool = start(setup())
    pool.submit(Candidate(number=0, choices=MIXED))
    pool.submit(Candidate(number=1, choices=FULL))
    measurement = drain(pool, 2)[1].result
    assert isinstance(measurement, Measurement)
    assert math.isclose(measurement.divergence, 0.0, abs_tol=1e-12)


def test_accuracy_below_the_floor_saves_the_latency(start: Start) -> None:
    pool = start(setup())
    pool.submit(Candidate(number=0, choices=MIXED, limits={Split.EVALUATION: QualityLimit(least_accuracy=1.1)}))
    measurement = drain(pool, 1)[0].result
    assert isinstance(measurement, Measurement)
    assert measurement.latency == ()
    assert measurement.working_bytes is None


def test_a_hopeless_candidate_is_given_up_and_a_final_one_is_measured_longer(start: Start) -> None:
    pool = start(setup(repeats=100))
    unbeatable = Incumbent(latency_ratio=1e-3)
    pool.submit(Candidate(number=0, choices=MIXED, incumbents=(unbeatable,)))
    pool.submit(Candidate(number=1, choices=MIXED, final=True))
    hopeless, final = (outcome.result for _, outcome in sorted(drain(pool, 2).items()))
    assert isinstance(hopeless, Measurement)
    assert isinstance(final, Measurement)
    assert (hopeless.gave_up, len(hopeless.latency[0].candidate_ms), hopeless.held_out) == (True, 50, None)
    assert (final.gave_up, len(final.latency[0].candidate_ms)) == (False, 120)
    assert final.held_out is not None


@pytest.mark.parametrize(("trouble", "cause"), [("raise", FailureCause.ERROR), ("memory", FailureCause.OUT_OF_MEMORY)])
def test_an_error_is_a_failure_and_the_pool_goes_on(start: Start, trouble: str, cause: FailureCause) -> None:
    pool = start(setup(trouble=trouble))
    pool.submit(Candidate(number=0, choices=MIXED))
    pool.submit(Candidate(number=1, choices=FULL))
    outcomes = drain(pool, 2)
    failure = outcomes[0].result
    assert isinstance(failure, Failure)
    assert failure.cause is cause
    assert failure.attempts == 1
    assert "\n" not in failure.message
    assert isinstance(outcomes[1].result, Measurement)


def test_probes_cover_every_layer_and_legal_choice(start: Start) -> None:
    pool = start(setup())
    probes, refusals = pool.probe(), pool.describe().refusals
    legal = [(layer, choice) for layer in ("0", "2") for choice in CHOICES if choice not in refusals[layer]]
    assert sorted((probe.layer, probe.choice) for probe in probes.layers) == sorted(legal)
    for probe in probes.layers:
        assert math.isfinite(probe.divergence)
        assert probe.divergence > 0.0 or (probe.choice == FULL_PRECISION.name and probe.divergence == 0.0)
        assert 0.0 < probe.latency_ms < 1e3
    assert 0.0 < probes.pass_ms < 1e3
    assert (probes.estimator, probes.samples) == (Estimator.GRADIENT, 64)
    assert probes.seconds > 0.0


@pytest.mark.parametrize("trouble", ["raise", "memory"])
def test_model_that_cannot_be_probed_is_an_error_and_the_pool_goes_on(start: Start, trouble: str) -> None:
    pool = start(setup(trouble=trouble))
    words = r"probing the model failed: .*(the first layer is in trouble|no room)"
    with pytest.raises(PoolError, match=words) as caught:
        pool.probe()
    assert "\n" not in str(caught.value)
    pool.submit(Candidate(number=0, choices=FULL))
    assert isinstance(drain(pool, 1)[0].result, Measurement)


def test_steps_are_reported_while_a_pool_starts_probes_and_measures(start: Start) -> None:
    steps: list[Step] = []
    # Slow enough that a driver that looks a few times a second sees every long stage.
    pool = start(setup(trouble="slow", repeats=300), steps.append)
    assert [step.total for step in steps if step.stage is Stage.CALIBRATING][-1] == 6
    assert max(step.done for step in steps if step.stage is Stage.CALIBRATING) >= 3
    assert all(step.total is None or 0 <= step.done <= step.total for step in steps)
    steps.clear()
    pool.probe()
    assert {step.stage for step in steps} & {Stage.SENSITIVITIES, Stage.LATENCIES}
    steps.clear()
    pool.submit(Candidate(number=0, choices=MIXED))
    assert isinstance(drain(pool, 1)[0].result, Measurement)
    latency = [(step.done, step.total) for step in steps if step.stage is Stage.LATENCY]
    assert latency
    assert all(total == 30 for _, total in latency)


def test_steps_of_several_workers_that_measure_are_not_reported(start_ray: Start) -> None:
    steps: list[Step] = []
    pool = start_ray(setup(trouble="slow"), steps.append, count=2)
    for number in range(6):
        pool.submit(Candidate(number=number, choices=MIXED))
    outcomes: list[Outcome] = []
    while len(outcomes) < 4:  # the last one may run alone
        assert [step for step in steps if step.stage.is_measuring] == []
        outcomes += pool.wait(1.0)
    while len(outcomes) < 6:
        outcomes += pool.wait(1.0)


def test_a_lost_board_of_steps_harms_nothing(start_ray: Start) -> None:
    steps: list[Step] = []
    pool = start_ray(setup(trouble="slow"), steps.append)
    ray.kill(pool._board._actor)  # type: ignore[attr-defined]
    pool.probe()
    pool.submit(Candidate(number=0, choices=MIXED))
    assert isinstance(drain(pool, 1)[0].result, Measurement)


def test_unknown_task_is_named(start: Start) -> None:
    with pytest.raises(TaskError, match="unknown task 'fragil'; did you mean 'fragile'"):
        start(setup(task="fragil"))


def test_unknown_parameter_is_named(start: Start) -> None:
    with pytest.raises(TaskError, match="did you mean 'trouble'"):
        start(setup(troubles="raise"))


def test_task_that_fails_is_told_in_one_line_with_its_own(start: Start) -> None:
    with pytest.raises(PoolError, match=r"could not start: RuntimeError: no weights \(.*fragile_task.py, line \d+\)$"):
        start(setup(trouble="build"))


def test_closing_twice_is_safe(start: Start) -> None:
    pool = start(setup())
    pool.close()
    pool.close()


def test_killed_worker_is_replaced_and_its_candidate_retried(start_ray: Start, tmp_path: Path) -> None:
    pool = start_ray(setup(trouble="kill_once", marks=str(tmp_path)))
    pool.submit(Candidate(number=0, choices=MIXED))
    outcome = drain(pool, 1)[0]
    assert isinstance(outcome.result, Measurement)
    assert outcome.attempts == 2


def test_candidate_that_always_kills_is_given_up(start_ray: Start) -> None:
    pool = start_ray(setup(trouble="kill"), count=2)
    for number, choices in enumerate([MIXED, FULL, FULL]):
        pool.submit(Candidate(number=number, choices=choices))
    outcomes = drain(pool, 3)
    failure = outcomes[0].result
    assert isinstance(failure, Failure)
    assert failure.cause is FailureCause.CRASH
    assert failure.attempts == MAX_ATTEMPTS
    assert all(isinstance(outcomes[number].result, Measurement) for number in (1, 2))


def test_hung_worker_is_replaced(start_ray: Start) -> None:
    # The limit must leave room for a fresh worker to load the task before it measures.
    pool = start_ray(setup(trouble="hang"), trial_timeout_s=12.0)
    pool.submit(Candidate(number=0, choices=MIXED))
    failure = drain(pool, 1)[0].result
    assert isinstance(failure, Failure)
    assert failure.cause is FailureCause.TIMEOUT


def test_waiting_for_the_device_does_not_count_as_hanging(start_ray: Start) -> None:
    pool = start_ray(setup(), trial_timeout_s=12.0)
    with DeviceLock("cpu").exclusive():
        pool.submit(Candidate(number=0, choices=MIXED))
        assert pool.wait(15.0) == []
    outcome = drain(pool, 1)[0]
    assert isinstance(outcome.result, Measurement)
    assert outcome.attempts == 1
    assert outcome.result.waited_seconds > 12.0


@pytest.mark.parametrize(("trouble", "timeout_s"), [("kill", 60.0), ("hang", 12.0)])
def test_worker_lost_while_probing_is_replaced(start_ray: Start, trouble: str, timeout_s: float) -> None:
    pool = start_ray(setup(trouble=trouble), trial_timeout_s=timeout_s)
    pool.submit(Candidate(number=0, choices=FULL))
    lost = drain(pool, 1)[0].worker
    with pytest.raises(PoolError, match="a worker died or hung while probing the model"):
        pool.probe()
    pool.submit(Candidate(number=1, choices=FULL))
    outcome = drain(pool, 1)[1]
    assert isinstance(outcome.result, Measurement)
    assert outcome.worker != lost
    # On a busy machine loading the task can take all of the shorter limit.
    assert outcome.attempts == 1 or trouble == "hang"


def test_workers_share_one_calibration(start_ray: Start) -> None:
    pool = start_ray(setup(), count=2, cpus=0.5)
    for number in range(4):
        pool.submit(Candidate(number=number, choices=MIXED))
    outcomes = drain(pool, 4)
    assert len({outcome.worker for outcome in outcomes.values()}) == 2
    assert len({outcome.result.divergence for outcome in outcomes.values()}) == 1  # type: ignore[union-attr]


def test_a_pool_has_its_workers_to_itself_unless_told_otherwise(start: Start) -> None:
    pool = start(setup(), count=1)
    assert pool.slots == 1
    assert pool.capacity() is None


def test_this_process_stays_the_only_worker() -> None:
    pool = build_pool("inline", setup(), PoolSettings(count=3))
    pool.resize(3)
    assert pool.slots == 1
    pool.resize(0)
    assert pool.slots == 1
    pool.close()


@pytest.mark.parametrize("pool", ["inline", "ray"])
def test_the_only_worker_there_is_must_be_of_the_kind_that_is_named(cluster: None, pool: str) -> None:
    kind = this_processor().kind
    named = build_pool(pool, setup(), PoolSettings(cpus=1, hardware=kind[2:].upper()))
    assert named.describe().environment.kind == kind
    named.close()
    with pytest.raises(PoolError, match=f"workers.hardware is 'H100', but .*{re.escape(kind)}"):
        build_pool(pool, setup(), PoolSettings(cpus=1, hardware="H100"))


def test_a_shared_pool_starts_small_and_knows_the_cluster(start_ray: Start) -> None:
    pool = start_ray(setup(), count=3, shared=True)
    capacity = pool.capacity()
    assert pool.slots == 1
    assert capacity is not None
    assert (capacity.cpus, capacity.gpus) == (4.0, 0.0)


def test_a_worker_that_is_too_many_measures_its_candidate_to_the_end(start_ray: Start, tmp_path: Path) -> None:
    pool = start_ray(setup(trouble="wait", marks=str(tmp_path)), shared=True)
    pool.submit(Candidate(number=0, choices=MIXED))
    wait_for((tmp_path / "waits").exists)
    pool.resize(0)
    assert pool.slots == 0
    pool.submit(Candidate(number=1, choices=FULL))
    assert pool.wait(0.2) == []
    (tmp_path / "go").touch()
    outcomes = drain(pool, 1)
    assert isinstance(outcomes[0].result, Measurement)
    assert outcomes[0].attempts == 1
    wait_for(lambda: free_cpus() == 4.0)
    assert pool.wait(0.2) == [], "a candidate was measured without a worker"
    pool.resize(1)
    later = drain(pool, 1)[1]
    assert isinstance(later.result, Measurement)
    assert (later.attempts, later.worker != outcomes[0].worker) == (1, True)


def test_a_pool_grows_and_shrinks(start_ray: Start) -> None:
    pool = start_ray(setup(), count=3, shared=True)
    pool.resize(3)
    for number in range(9):
        pool.submit(Candidate(number=number, choices=MIXED))
    outcomes = drain(pool, 9)
    assert all(isinstance(outcome.result, Measurement) for outcome in outcomes.values())
    assert len({outcome.worker for outcome in outcomes.values()}) == 3
    pool.resize(1)
    wait_for(lambda: free_cpus() == 3.0)
    pool.submit(Candidate(number=9, choices=FULL))
    assert drain(pool, 1)[9].worker in {outcome.worker for outcome in outcomes.values()}


def test_a_shared_pool_waits_for_workers_that_others_have(start_ray: Start) -> None:
    greedy = start_ray(setup(), count=4, shared=True)
    greedy.resize(4)
    wait_for(lambda: free_cpus() == 0.0)
    with ThreadPoolExecutor(1) as thread:
        modest = thread.submit(start_ray, setup(), shared=True)
        with pytest.raises(TimeoutError):
            modest.result(timeout=2.0)
        greedy.resize(3)
        pool = modest.result(timeout=60.0)
    pool.submit(Candidate(number=0, choices=FULL))
    assert isinstance(drain(pool, 1)[0].result, Measurement)


@pytest.mark.parametrize(("settings", "named"), [({"cpus": 64}, "CPUs"), ({"gpus": 0.5}, "GPUs")])
def test_impossible_resources_are_refused(start_ray: Start, settings: dict[str, float], named: str) -> None:
    with pytest.raises(PoolError, match=f"{named}, but the Ray cluster has .* lower workers.count"):
        start_ray(setup(), **settings)


def test_errors_are_for_users() -> None:
    assert issubclass(PoolError, AutotuneError)


def test_recovered_map_comes_with_its_quality_and_what_was_learned(start: Start) -> None:
    pool = start(setup())
    choices = {"0": "int8_dynamic", "2": "int8_dynamic"}
    found = pool.recover(choices, "", RecoverySettings(epochs=2))
    assert set(found.report.layers) | set(found.report.kept) >= {"0"}
    assert (found.measurement is None) == (found.learned == b"")
    if found.measurement is not None:
        assert digest(found.learned) == found.report.sha256
        assert found.measurement.latency == ()
    pool.submit(Candidate(number=0, choices=choices))
    assert isinstance(drain(pool, 1)[0].result, Measurement)


def test_map_that_cannot_be_recovered_is_an_error_and_the_pool_goes_on(start: Start) -> None:
    pool = start(setup())
    with pytest.raises(PoolError, match=r"recovering the map failed: .*layer 'missing'"):
        pool.recover({"missing": "int8_dynamic"}, "", RecoverySettings(epochs=1))
    pool.submit(Candidate(number=0, choices=FULL))
    assert isinstance(drain(pool, 1)[0].result, Measurement)
