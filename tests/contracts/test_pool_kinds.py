"""Workers of one job are of one kind of hardware, on a real cluster whose nodes pretend to be of several."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from workers.candidate import Candidate, Outcome
from workers.device.hardware import KIND
from workers.errors import ClusterLostError, PoolError
from workers.measurement import Measurement
from workers.pools.build import build_pool
from workers.pools.ray_pool import RayPool
from workers.setup import MeasurementSettings, PoolSettings, WorkerSetup

TASK_FILE = str(Path(__file__).parents[1] / "data" / "fragile_task.py")
FULL = {"0": "fp32", "2": "fp32"}
MIXED = {"0": "int8_static", "2": "int8_dynamic"}
#: The first has two CPUs, the second one.
LARGE, SMALL = "Some CPU (AVX2)", "Some CPU (AVX2, AVX-512)"

Start = Callable[..., RayPool]
Join = Callable[..., Any]


def setup(**parameters: Any) -> WorkerSetup:
    settings = MeasurementSettings(repeats=20, final_repeats=20, warmup_s=0.0, threads=1)
    return WorkerSetup(task="fragile", task_parameters=parameters, measurement=settings, task_file=TASK_FILE)


def add_node(cluster: Cluster, kind: str, cpus: int, **more: Any) -> Any:
    return cluster.add_node(num_cpus=cpus, env_vars={KIND: kind}, **more)


@pytest.fixture(scope="module")
def cluster(ray_token: str) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", ray_token)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster()
        add_node(started, "measures nothing", 0, include_dashboard=False)
        # The one with more room has neither the first name nor the first place.
        add_node(started, SMALL, 1)
        add_node(started, LARGE, 2)
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Start]:
    """Start pools, and close them in the end."""
    pools: list[RayPool] = []

    def start_pool(worker_setup: WorkerSetup | None = None, **settings: Any) -> RayPool:
        wanted = {"cpus": 1, "ray_address": cluster.address} | settings
        pool = build_pool("ray", worker_setup or setup(), PoolSettings(**wanted))
        assert isinstance(pool, RayPool)
        pools.append(pool)
        return pool

    yield start_pool
    for pool in pools:
        pool.close()
    wait_for(lambda: ray.available_resources().get("CPU") == 3.0)


@pytest.fixture
def join(cluster: Cluster) -> Iterator[Join]:
    """Let a node join, which leaves in the end."""
    joined: list[Any] = []

    def add(kind: str, cpus: int) -> Any:
        joined.append(add_node(cluster, kind, cpus))
        return joined[-1]

    yield add
    for node in joined:
        with contextlib.suppress(KeyError):  # it left before
            cluster.remove_node(node)


def wait_for(check: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def measured(pool: RayPool, count: int, choices: dict[str, str] = MIXED) -> list[Outcome]:
    """Measure ``count`` candidates."""
    for number in range(count):
        pool.submit(Candidate(number=number, choices=choices))
    outcomes: list[Outcome] = []
    wait_for(lambda: outcomes.extend(pool.wait(1.0)) or len(outcomes) == count, 120.0)
    return outcomes


def kinds(outcomes: list[Outcome]) -> set[str]:
    found = [outcome.result for outcome in outcomes]
    assert all(isinstance(result, Measurement) for result in found), found
    return {result.environment.kind for result in found if isinstance(result, Measurement)}


def test_all_workers_are_of_the_kind_with_most_room(start: Start) -> None:
    pool = start(count=2)
    assert pool.describe().environment.kind == LARGE
    outcomes = measured(pool, 6)
    assert len({outcome.worker for outcome in outcomes}) == 2
    assert kinds(outcomes) == {LARGE}


@pytest.mark.parametrize("settings", [{"hardware": "avx-512"}, {"hardware": SMALL}, {"kind": SMALL}])
def test_a_kind_that_is_named_or_was_before_is_taken(start: Start, settings: dict[str, str]) -> None:
    assert start(**settings).describe().environment.kind == SMALL


def test_a_kind_that_is_nowhere_is_refused_with_those_there_are(start: Start) -> None:
    there = rf"the nodes that can hold a worker are 1 of '{re.escape(LARGE)}', 1 of '{re.escape(SMALL)}'"
    with pytest.raises(PoolError, match=f"workers.hardware is 'H100', but {there}; name one of these"):
        start(hardware="H100")
    with pytest.raises(PoolError, match=f"workers were of the kind 'H100' before, but {there}; add a node"):
        start(kind="H100")


def test_more_workers_than_nodes_of_their_kind_hold_are_refused(start: Start) -> None:
    # The cluster has three CPUs.
    with pytest.raises(PoolError, match="need 3 CPUs, but the Ray cluster has 2"):
        start(count=3)
    with pytest.raises(PoolError, match="need 2 CPUs, but the Ray cluster has 1"):
        start(count=2, hardware="AVX-512")


def test_a_worker_that_no_node_holds_is_refused(start: Start) -> None:
    with pytest.raises(PoolError, match="a worker needs more resources than any node of the Ray cluster has"):
        start(cpus=2.5)


def test_a_lost_worker_is_replaced_on_its_kind(start: Start, tmp_path: Path) -> None:
    pool = start(setup(trouble="kill_once", marks=str(tmp_path)), hardware="AVX-512")
    outcome = measured(pool, 1)[0]
    assert (tmp_path / "killed").exists()
    assert outcome.attempts == 2
    assert kinds([outcome]) == {SMALL}


def test_a_job_waits_for_its_kind_while_another_is_free(start: Start) -> None:
    first = start(hardware="AVX-512", shared=True)
    capacity = first.capacity()
    assert capacity is not None
    assert (capacity.cpus, capacity.machine_cpus, capacity.kinds) == (1.0, 1.0, {SMALL})
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(start, kind=SMALL, shared=True)
        with pytest.raises(TimeoutError):
            second.result(timeout=8.0)
        first.close()
        assert second.result(timeout=60.0).describe().environment.kind == SMALL


def test_a_job_that_waits_goes_to_a_node_that_joins(start: Start, join: Join) -> None:
    first = start(hardware="AVX-512", shared=True)
    # Closing the first lets the second end, whatever went wrong.
    with ThreadPoolExecutor(1) as thread, contextlib.closing(first):
        second = thread.submit(start, kind=SMALL, shared=True)
        with pytest.raises(TimeoutError):
            second.result(timeout=6.0)
        join(SMALL, 1)
        pool = second.result(timeout=60.0)
        assert kinds([*measured(pool, 1), *measured(first, 1)]) == {SMALL}


def test_a_pool_grows_onto_nodes_of_its_kind_that_join(start: Start, join: Join) -> None:
    pool = start(hardware=LARGE, shared=True)
    join(LARGE, 1)
    join(SMALL, 1)
    wait_for(lambda: (capacity := pool.capacity()) and capacity.cpus == 3.0)
    pool.resize(3)
    outcomes = measured(pool, 9)
    assert len({outcome.worker for outcome in outcomes}) == 3
    assert kinds(outcomes) == {LARGE}


def test_a_job_whose_last_node_leaves_has_lost_its_cluster(start: Start, join: Join, cluster: Cluster) -> None:
    node = join("Other CPU", 1)
    pool = start(hardware="other")
    cluster.remove_node(node)
    pool.submit(Candidate(number=0, choices=FULL))
    with pytest.raises(ClusterLostError, match="no node of the kind 'Other CPU' is left"):
        wait_for(lambda: pool.wait(1.0))
