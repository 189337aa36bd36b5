"""Which kind of hardware a job's workers are of, and how much room it has."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import PoolError
from workers.pools.hardware_kinds import Node, capacity_of, choose_kind, fitting, named_kind
from workers.setup import PoolSettings

AVX2, AVX512 = "AMD EPYC (AVX2)", "AMD EPYC (AVX2, AVX-512)"


def node(name: str, kind: str = "", cpus: float = 4.0, gpus: float = 0.0) -> Node:
    return Node(id=name, cpus=cpus, gpus=gpus, kind=kind)


NODES = [node("a", AVX2, 2.0), node("b", AVX512, 4.0), node("c", AVX2, 1.0)]


def test_the_kind_with_most_room_is_chosen() -> None:
    assert choose_kind(NODES, PoolSettings(cpus=1)) == AVX512
    # Three nodes with two CPUs each hold three such workers, one with five holds two.
    others = [node("a", "many", 2.0), node("b", "one", 5.0), node("c", "many", 2.0), node("d", "many", 2.0)]
    assert choose_kind(others, PoolSettings(cpus=2)) == "many"
    assert choose_kind(others, PoolSettings(cpus=3)) == "one"


def test_room_counts_gpus_too() -> None:
    nodes = [node("a", "A100", 16.0, 1.0), node("b", "H100", 4.0, 4.0)]
    assert choose_kind(nodes, PoolSettings(cpus=1, gpus=0.5)) == "H100"
    assert choose_kind(nodes, PoolSettings(cpus=2, gpus=0.1)) == "A100"


def test_workers_without_a_wish_for_cpus_share_a_machine_of_their_kind() -> None:
    # With two workers a machine, that is four on two large machines and six on three small ones.
    nodes = [*(node(f"l{n}", "large", 64.0) for n in range(2)), *(node(f"s{n}", "small", 8.0) for n in range(3))]
    assert choose_kind(nodes, PoolSettings(count=2)) == "small"


@given(st.permutations([*NODES, node("d", "Other", 4.0)]))
def test_the_order_of_nodes_does_not_matter(nodes: list[Node]) -> None:
    assert choose_kind(nodes, PoolSettings(cpus=1)) == AVX512


@pytest.mark.parametrize("wish", [None, "EPYC", AVX512])
def test_the_kind_of_earlier_workers_comes_first(wish: str | None) -> None:
    assert choose_kind(NODES, PoolSettings(cpus=1, kind=AVX2, hardware=wish)) == AVX2


def test_the_kind_of_earlier_workers_must_be_there_exactly() -> None:
    nodes = [node("a", "NVIDIA A100")]
    there = "the nodes that can hold a worker are 1 of 'NVIDIA A100'"
    with pytest.raises(PoolError, match=f"were of the kind 'NVIDIA A10' before, but {there}; add .*, or clone the job"):
        choose_kind(nodes, PoolSettings(kind="NVIDIA A10"))


@pytest.mark.parametrize(("name", "kind"), [(AVX2, AVX2), ("avx-512", AVX512), ("EPYC (AVX2)", AVX2)])
def test_a_kind_is_named_wholly_or_in_part(name: str, kind: str) -> None:
    assert choose_kind(NODES, PoolSettings(hardware=name)) == kind


def test_a_whole_name_comes_before_parts() -> None:
    assert named_kind("H100", ["H100 NVL", "H100"]) == "H100"


def test_a_name_that_is_part_of_several_kinds_is_refused() -> None:
    several = re.escape(f"workers.hardware is 'epyc', which is part of {AVX2!r} and {AVX512!r}; give more")
    with pytest.raises(PoolError, match=several):
        choose_kind(NODES, PoolSettings(hardware="epyc"))


def test_a_kind_that_is_nowhere_is_refused_with_those_there_are() -> None:
    there = re.escape(f"workers.hardware is 'Xeon', but the nodes that can hold a worker are 2 of {AVX2!r}, 1 of")
    with pytest.raises(PoolError, match=there):
        choose_kind(NODES, PoolSettings(hardware="Xeon"))


@given(st.integers(1, 500), st.integers(0, 200), st.integers(0, 8), st.integers(0, 4))
def test_a_node_holds_as_many_workers_as_can_be_placed_one_by_one(
    cpus: int, gpus: int, has_cpus: int, has_gpus: int
) -> None:
    """In hundredths, so that the oracle is exact."""
    numbers = itertools.count(1)
    placed = next(n - 1 for n in numbers if n * cpus > 100 * has_cpus or n * gpus > 100 * has_gpus)
    assert node("a", cpus=has_cpus, gpus=has_gpus).workers(cpus / 100, gpus / 100) == placed


def test_ten_workers_share_one_gpu_by_tenths() -> None:
    assert node("a", cpus=10.0, gpus=1.0).workers(1.0, 0.1) == 10


def test_nodes_that_hold_no_worker_are_left_out() -> None:
    nodes = [node("head", cpus=0.0), node("half", cpus=0.5), node("cpu", cpus=2.0), node("gpu", cpus=2.0, gpus=1.0)]

    def names(settings: PoolSettings) -> list[str]:
        return [each.id for each in fitting(nodes, settings)]

    assert names(PoolSettings()) == ["cpu", "gpu"]
    assert names(PoolSettings(cpus=0.25)) == ["half", "cpu", "gpu"]
    assert names(PoolSettings(cpus=2, gpus=0.5)) == ["gpu"]


def test_capacity_is_the_sum_and_knows_the_smallest_machine() -> None:
    found = capacity_of([*NODES, node("head", AVX2, 0.0)])
    assert (found.cpus, found.gpus, found.machine_cpus, found.kinds) == (7.0, 0.0, 1.0, frozenset())
    assert capacity_of(NODES, machine_cpus=2.0).machine_cpus == 2.0


def test_kinds_of_a_capacity_are_known_only_if_every_node_told_its_own() -> None:
    told = Node(id="a", cpus=4.0, gpus=1.0, kind="H100", kinds=frozenset({"H100", AVX2}))
    other = Node(id="b", cpus=4.0, gpus=1.0, kind="H100", kinds=frozenset({"H100", AVX512}))
    assert capacity_of([told, other]).kinds == {"H100", AVX2, AVX512}
    assert capacity_of([told, node("c", "H100")]).kinds == frozenset()
