"""The nodes of a Ray cluster, asked what hardware they are: the workers of a job are of one kind."""

import dataclasses
import os
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.errors import AutotuneError
from workers.errors import ClusterLostError, PoolError
from workers.pools.base import Capacity
from workers.pools.hardware_kinds import Node, capacity_of, choose_kind, fitting
from workers.pools.ray_errors import cause_of, cluster_errors
from workers.setup import PoolSettings

#: Longest to wait until nodes have told what they are; a busy machine takes seconds to import PyTorch.
_PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a process says about its node."""

    node_id: str
    #: Kind of hardware the job's workers are of there.
    kind: str
    #: Kinds that workers of any job may be of there.
    kinds: frozenset[str]


def look(backend: str, gpus: float) -> Told:
    """Return what this process's node is for workers that have ``gpus`` GPUs each.

    Raises:
        BackendError: if the backend cannot run here.
        PoolError: if GPUs of several models are visible, so that workers here may differ.
    """
    # Imported here so that only processes that look wait for torch.
    from workers.backends import build_backend
    from workers.device.gpu import models
    from workers.device.hardware import kind_of, kinds_here

    device = build_backend(backend).device if gpus else "cpu"
    kinds, different = kinds_here(), sorted(set(models()))
    if device != "cpu" and len(different) > 1 and len(kinds) > 1:
        raise PoolError(
            f"GPUs of one node are of the kinds {' and '.join(different)}, so its workers would not compare; "
            "start a Ray node for each kind, with CUDA_VISIBLE_DEVICES set to its GPUs"
        )
    return Told(node_id=ray.get_runtime_context().get_node_id(), kind=kind_of(device), kinds=frozenset(kinds))


#: Takes no CPUs, so that busy nodes answer too, and ends its process, which may have touched a GPU.
_look: Any = ray.remote(num_cpus=0, max_calls=1)(look)


class Nodes:
    """The nodes that may have a job's workers. A node is asked what it is once, and only if there is a choice."""

    def __init__(self, settings: PoolSettings, backend: str) -> None:
        self._settings = settings
        self._backend = backend
        #: Kind of the job's workers; empty as long as nobody had to choose.
        self._kind = ""
        #: Node id -> what it said, or why workers cannot be there.
        self._told: dict[str, Told | AutotuneError] = {}
        self._asked: dict[str, Any] = {}
        #: What the first worker said, if its node was not asked.
        self._met: Told | None = None

    def capacity(self) -> Capacity:
        """Return what the nodes of the job's kind have; of all nodes as long as nobody had to choose."""
        nodes = self._alive()
        if self._kind:
            # Also those that are too small for this job, so that all jobs of one kind find the same.
            nodes = [node for node in nodes if node.cpus and (node.gpus or not self._settings.gpus)]
            self._ask(nodes, 0.0)
            nodes = self._of_kind(nodes)
        # A private cluster has more CPUs than the machine if its user wants more workers than that.
        private = self._settings.ray_address == "local"
        return capacity_of(nodes, machine_cpus=float(os.cpu_count() or 1) if private else None)

    def choose(self) -> None:
        """Choose the kind of the job's workers, if there is a choice.

        Raises:
            PoolError: if no node is of the kind that is wanted.
        """
        nodes = fitting(self._alive(), self._settings)
        if self._kind or not self._may_differ(nodes):
            return
        self._ask(nodes, _PATIENCE_S)
        known = self._described(nodes)
        if not known:
            troubles = [told for told in self._told.values() if isinstance(told, AutotuneError)]
            raise next(iter(troubles), PoolError(f"no node of the Ray cluster answered within {_PATIENCE_S:g} s"))
        self._kind = choose_kind(known, self._settings)

    def allowed(self) -> frozenset[str]:
        """Return the ids of the nodes that may have a worker now.

        Raises:
            PoolError: if a worker fits on no node, or none is of the kind that is wanted.
            ClusterLostError: if no node of the job's kind is left.
        """
        self.choose()
        nodes = fitting(self._alive(), self._settings)
        if self._kind:
            deadline = time.monotonic() + _PATIENCE_S
            self._ask(nodes, 0.0)
            while not self._of_kind(nodes) and self._asked and time.monotonic() < deadline:
                self._ask(nodes, 1.0)
            nodes = self._of_kind(nodes)
            if not nodes:
                raise ClusterLostError(
                    f"no node of the kind {self._kind!r} is left that can hold a worker; add one and resume the job"
                )
        if not nodes:
            raise PoolError(
                "a worker needs more than any node of the Ray cluster has; lower workers.cpus or workers.gpus"
            )
        return frozenset(node.id for node in nodes)

    def met(self, told: Told) -> None:
        """Hear what the first worker says about its node, and take it for all others if nobody had to choose.

        Raises:
            PoolError: if it is not of the kind that is wanted.
        """
        if self._kind and self._kind != told.kind:
            raise PoolError(
                f"a worker is of the kind {told.kind!r}, but its node said {self._kind!r}; restart the node"
            )
        if not self._kind:
            choose_kind([Node(id=told.node_id, cpus=0.0, gpus=0.0, kind=told.kind)], self._settings)
        self._kind = told.kind
        # It does not see the GPUs it has not got, so it cannot tell what other jobs may be of there.
        self._met = dataclasses.replace(told, kinds=frozenset())

    def _may_differ(self, nodes: list[Node]) -> bool:
        """Return whether workers on these nodes may differ: then nodes must tell what they are."""
        return len(nodes) > 1 or bool(self._settings.gpus and any(node.gpus > 1 for node in nodes))

    def _of_kind(self, nodes: list[Node]) -> list[Node]:
        return [node for node in self._described(nodes) if node.kind == self._kind]

    def _described(self, nodes: list[Node]) -> list[Node]:
        """Return nodes with what they said."""
        found = []
        for node in nodes:
            told = self._told.get(node.id, self._met)
            if isinstance(told, Told) and told.node_id == node.id:
                found.append(dataclasses.replace(node, kind=told.kind, kinds=told.kinds))
        return found

    def _alive(self) -> list[Node]:
        with cluster_errors():
            nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return [
            Node(id=node["NodeID"], cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
            for node in nodes
        ]

    def _ask(self, nodes: list[Node], wait_s: float) -> None:
        """Ask nodes that were not asked yet, and hear those that answer within ``wait_s`` seconds."""
        for node in nodes if self._may_differ(nodes) else ():
            if node.id not in self._told and node.id not in self._asked:
                there = NodeAffinitySchedulingStrategy(node.id, soft=False)
                asking = _look.options(scheduling_strategy=there)
                self._asked[node.id] = asking.remote(self._backend, self._settings.gpus)
        references = list(self._asked.values())
        with cluster_errors():
            ready = ray.wait(references, num_returns=len(references), timeout=wait_s)[0] if references else []
        for node_id, reference in [item for item in self._asked.items() if item[1] in ready]:
            del self._asked[node_id]
            try:
                self._told[node_id] = ray.get(reference)
            except RayTaskError as error:
                self._told[node_id] = cause_of(error)
            except RayError:
                continue  # the node is gone, or will be asked again
