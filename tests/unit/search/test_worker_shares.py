"""Fair shares against the definition of fairness, and against an oracle that tries every division."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from autotune.jobs.records import HeldJob
from autotune.search.worker_shares import fair_shares
from workers.pools.base import Capacity

TINY = 1e-9


def held_job(
    name: str, count: int = 4, cpus: float | None = 1.0, gpus: float = 0.0, kind: str = ""
) -> HeldJob:  # fmt: skip
    return HeldJob(job_id=name, driver="d", epoch=1, count=count, cpus=cpus, gpus=gpus, kind=kind)


def cluster(cpus: float, gpus: float = 0.0, *kinds: str) -> Capacity:
    return Capacity(cpus=cpus, gpus=gpus, machine_cpus=cpus, kinds=frozenset(kinds))


counts = st.integers(1, 5)
alike = st.lists(st.builds(held_job, st.uuids().map(str), counts), max_size=5)
mixed = st.lists(
    st.builds(
        held_job, st.uuids().map(str), counts, st.none() | st.sampled_from([0.5, 1.0, 2.0]),
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    ),
    max_size=5,
)  # fmt: skip
clusters = st.builds(cluster, st.integers(0, 9), st.integers(0, 3))


def used(jobs: list[HeldJob], shares: dict[str, int], capacity: Capacity) -> tuple[float, float]:
    cpus = sum(shares[job.job_id] * capacity.cpus_per_worker(job.cpus, job.count) for job in jobs)
    return cpus, sum(shares[job.job_id] * job.gpus for job in jobs)


@given(jobs=mixed, capacity=clusters)
def test_no_job_gets_more_than_there_is_or_than_it_wants(jobs: list[HeldJob], capacity: Capacity) -> None:
    shares = fair_shares(jobs, capacity)
    cpus, gpus = used(jobs, shares, capacity)
    assert cpus <= capacity.cpus + TINY
    assert gpus <= capacity.gpus + TINY
    assert all(0 <= shares[job.job_id] <= job.count for job in jobs)
    assert set(shares) == {job.job_id for job in jobs}


@given(jobs=mixed, capacity=clusters)
def test_no_worker_is_left_idle_that_some_job_could_use(jobs: list[HeldJob], capacity: Capacity) -> None:
    shares = fair_shares(jobs, capacity)
    for job in jobs:
        more = shares | {job.job_id: shares[job.job_id] + 1}
        cpus, gpus = used(jobs, more, capacity)
        full = cpus > capacity.cpus + TINY or gpus > capacity.gpus + TINY
        assert full or shares[job.job_id] == job.count


@given(jobs=alike, workers=st.integers(0, 12))
def test_shares_are_max_min_fair(jobs: list[HeldJob], workers: int) -> None:
    """Of all divisions, the fair one's sorted shares are the greatest; of those, earlier jobs have more."""
    possible = itertools.product(*(range(job.count + 1) for job in jobs))
    best = max((tuple(sorted(division)), division) for division in possible if sum(division) <= workers)
    assert tuple(fair_shares(jobs, cluster(workers)).values()) == best[1]


@given(jobs=mixed, capacity=clusters)
def test_jobs_that_ask_for_the_same_differ_by_one_worker_at_most(jobs: list[HeldJob], capacity: Capacity) -> None:
    shares = fair_shares(jobs, capacity)
    for first, second in itertools.combinations(jobs, 2):
        if (first.count, first.cpus, first.gpus) == (second.count, second.cpus, second.gpus):
            assert 0 <= shares[first.job_id] - shares[second.job_id] <= 1, "the one of higher rank is served first"


def test_ten_workers_share_one_gpu_by_tenths() -> None:
    jobs = [held_job("a", 10, 0.1, 0.1), held_job("b", 10, 0.1, 0.1)]
    assert fair_shares(jobs, cluster(4, 1)) == {"a": 5, "b": 5}


def test_workers_without_a_wish_share_a_machine() -> None:
    two_machines = Capacity(cpus=8.0, gpus=0.0, machine_cpus=4.0)
    assert fair_shares([held_job("a", 2, None), held_job("b", 2, None)], two_machines) == {"a": 2, "b": 2}
    assert fair_shares([held_job("a", 8, None)], two_machines) == {"a": 8}


def test_a_job_that_fits_nowhere_gets_nothing_and_takes_nothing() -> None:
    assert fair_shares([held_job("big", 2, 64.0), held_job("small", 2)], cluster(4)) == {"big": 0, "small": 2}


def test_jobs_on_another_kind_of_hardware_take_nothing() -> None:
    jobs = [held_job("a", kind="A"), held_job("b", kind="B"), held_job("new")]
    assert fair_shares(jobs, cluster(4.0, 0.0, "A")) == {"a": 2, "new": 2}
    assert fair_shares(jobs, cluster(4.0, 0.0, "A", "B")) == {"a": 2, "b": 1, "new": 1}
    assert fair_shares(jobs, cluster(4.0)) == {"a": 2, "b": 1, "new": 1}
