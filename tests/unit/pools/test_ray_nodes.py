"""Which nodes are asked what they are, and when: on a made-up cluster."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, TaskUnschedulableError

from workers.errors import BackendError, ClusterLostError, PoolError
from workers.pools import ray_nodes
from workers.pools.ray_nodes import Nodes, Told
from workers.setup import PoolSettings

NO_CUDA = RayTaskError("look", "traceback", BackendError("torchao needs a CUDA device"))


class FakeRay:
    """A cluster whose nodes say what they are told to, at once unless they are silent."""

    def __init__(self) -> None:
        self.answers: dict[str, str | Exception] = {}
        self.resources: dict[str, dict[str, float]] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []

    def add(self, node: str, answer: str | Exception, cpus: float = 4.0, gpus: float = 0.0) -> None:
        self.answers[node], self.resources[node] = answer, {"CPU": cpus, "GPU": gpus}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": has} for node, has in self.resources.items()]

    def options(self, scheduling_strategy: Any) -> Any:
        assert not scheduling_strategy.soft
        return SimpleNamespace(remote=lambda backend, gpus: self._ask(scheduling_strategy.node_id))

    def _ask(self, node: str) -> str:
        self.asked.append(node)
        return node

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return [each for each in references if each not in self.silent], []

    def get(self, reference: str) -> Told:
        answer = self.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return told(reference, answer)


def told(node: str, kind: str) -> Told:
    return Told(node_id=node, kind=kind, kinds=frozenset({kind, "host"}))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for name in ("nodes", "wait", "get"):
        monkeypatch.setattr(ray_nodes.ray, name, getattr(fake, name))
    monkeypatch.setattr(ray_nodes, "_look", fake)
    monkeypatch.setattr(ray_nodes, "_PATIENCE_S", 0.2)
    strategy = lambda node_id, soft: SimpleNamespace(node_id=node_id, soft=soft)  # noqa: E731
    monkeypatch.setattr(ray_nodes, "NodeAffinitySchedulingStrategy", strategy)
    return fake


def nodes(**settings: Any) -> Nodes:
    return Nodes(PoolSettings(**({"cpus": 1, "ray_address": "head:1"} | settings)), "x86")


def test_the_only_node_is_not_asked(cluster: FakeRay) -> None:
    cluster.add("head", "A", cpus=0.0)
    cluster.add("n1", "A")
    found = nodes()
    found.choose()
    assert found.allowed() == {"n1"}
    assert found.capacity().kinds == frozenset()
    found.met(told("n1", "A"))
    assert found.allowed() == {"n1"}
    assert found.capacity().kinds == frozenset(), "a worker without GPUs does not see those of others"
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("settings", "error"), [({"hardware": "B"}, "workers.hardware is 'B'"), ({"kind": "B"}, "'B'")]
)
def test_the_only_node_must_be_of_the_kind_that_is_wanted(
    cluster: FakeRay, settings: dict[str, str], error: str
) -> None:
    cluster.add("n1", "A")
    found = nodes(**settings)
    with pytest.raises(PoolError, match=f"{error}.* 1 of 'A'"):
        found.met(told("n1", "A"))


def test_nodes_that_join_the_only_one_are_asked_then(cluster: FakeRay) -> None:
    cluster.add("n1", "A")
    found = nodes()
    found.met(told("n1", "A"))
    cluster.add("n2", "B")
    cluster.add("n3", "A")
    cluster.silent.add("n3")
    assert found.allowed() == {"n1"}
    cluster.silent.clear()
    assert found.allowed() == {"n1", "n3"}
    assert found.capacity().cpus == 8.0
    assert sorted(cluster.asked) == ["n1", "n2", "n3"]


def test_several_gpus_on_the_only_node_are_asked_for(cluster: FakeRay) -> None:
    cluster.add("n1", RayTaskError("look", "traceback", PoolError("of the kinds A100 and H100")), gpus=2.0)
    with pytest.raises(PoolError, match="of the kinds A100 and H100"):
        nodes(gpus=1.0).choose()
    nodes().choose()
    assert cluster.asked == ["n1"]


def test_nodes_that_cannot_have_workers_are_left_out(cluster: FakeRay) -> None:
    cluster.add("n1", NO_CUDA, cpus=64.0, gpus=1.0)
    cluster.add("n2", "H100", gpus=1.0)
    cluster.add("n3", "Xeon", cpus=64.0)
    found = nodes(gpus=1.0)
    found.choose()
    assert found.allowed() == {"n2"}
    assert (found.capacity().cpus, found.capacity().kinds) == (4.0, {"H100", "host"})
    assert cluster.asked == ["n1", "n2"]
    cluster.add("n2", NO_CUDA, gpus=1.0)
    with pytest.raises(BackendError, match="needs a CUDA device"):
        nodes(gpus=1.0).choose()


def test_a_node_that_leaves_while_it_is_asked_is_no_error(cluster: FakeRay) -> None:
    cluster.add("n1", "A")
    cluster.add("n2", TaskUnschedulableError("it is gone"))
    found = nodes()
    found.choose()
    assert found.allowed() == {"n1"}


def test_nodes_that_do_not_answer_are_an_error(cluster: FakeRay) -> None:
    cluster.add("n1", "A")
    cluster.add("n2", "A")
    cluster.silent = {"n1", "n2"}
    with pytest.raises(PoolError, match=r"no node of the Ray cluster answered within 0.2 s"):
        nodes().choose()


def test_the_last_node_of_the_kind_is_missed(cluster: FakeRay) -> None:
    cluster.add("n1", "A", cpus=8.0)
    cluster.add("n2", "B")
    found = nodes()
    found.choose()
    del cluster.resources["n1"]
    cluster.add("n3", "B")
    with pytest.raises(ClusterLostError, match="no node of the kind 'A' is left"):
        found.allowed()
    cluster.add("n4", "A")
    assert found.allowed() == {"n4"}


def test_a_worker_must_be_what_its_node_said(cluster: FakeRay) -> None:
    cluster.add("n1", "A")
    cluster.add("n2", "A")
    found = nodes()
    found.choose()
    found.met(told("n1", "A"))
    with pytest.raises(PoolError, match="a worker is of the kind 'B', but its node reported 'A'"):
        found.met(told("n1", "B"))


def test_capacity_counts_nodes_of_the_kind_that_are_too_small(cluster: FakeRay) -> None:
    for node, kind, cpus in (("n1", "A", 8.0), ("n2", "A", 1.0), ("n3", "B", 4.0)):
        cluster.add(node, kind, cpus)
    found = nodes(cpus=2)
    found.choose()
    assert found.capacity().cpus == 9.0
    assert found.allowed() == {"n1"}
