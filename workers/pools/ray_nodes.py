"""The nodes of a Ray cluster and their hardware; all workers of a job run on hardware of one kind."""

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

#: Longest wait for nodes to report their hardware; a busy machine takes seconds to import PyTorch.
_PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A process's report about its node."""

    node_id: str
    #: Kind of hardware that the job's workers have there.
    kind: str
    #: Kinds of hardware that workers of any job may have there.
    kinds: frozenset[str]


def look(backend: str, gpus: float) -> Told:
    """Return the report about this process's node, for workers with ``gpus`` GPUs each.

    Raises:
        BackendError: if the backend cannot run here.
        PoolError: if GPUs of several models are visible, so that workers here may differ.
    """
    # Imported here so that only processes that inspect their node wait for torch.
    from workers.backends import build_backend
    from workers.device.gpu import models
    from workers.device.hardware import kind_of, kinds_here

    device = build_backend(backend).device if gpus else "cpu"
    kinds, different = kinds_here(), sorted(set(models()))
    if device != "cpu" and len(different) > 1 and len(kinds) > 1:
        raise PoolError(
            f"one node has GPUs of the kinds {' and '.join(different)}, so its workers would not be comparable; "
            "start one Ray node per kind, with CUDA_VISIBLE_DEVICES set to its GPUs"
        )
    return Told(node_id=ray.get_runtime_context().get_node_id(), kind=kind_of(device), kinds=frozenset(kinds))


#: Needs no CPUs, so that busy nodes answer too. Its process ends afterwards, because it may have initialised a GPU.
_look: Any = ray.remote(num_cpus=0, max_calls=1)(look)


class Nodes:
    """The nodes that may run a job's workers. Each node is queried at most once, and only if nodes may differ."""

    def __init__(self, settings: PoolSettings, backend: str) -> None:
        self._settings = settings
        self._backend = backend
        #: Kind of the job's workers; empty until it is known.
        self._kind = ""
        #: Node id -> its report, or why workers cannot run there.
        self._reports: dict[str, Told | AutotuneError] = {}
        #: Node id -> Ray reference of the report that the node has yet to return.
        self._pending: dict[str, Any] = {}
        #: The first worker's report, for a node that was not queried.
        self._first_report: Told | None = None

    def capacity(self) -> Capacity:
        """Return the resources of the nodes of the job's kind; of all nodes until the kind is known."""
        nodes = self._alive()
        if self._kind:
            # Include nodes too small for this job, so that all jobs of one kind see the same capacity.
            nodes = [node for node in nodes if node.cpus and (node.gpus or not self._settings.gpus)]
            self._query(nodes, 0.0)
            nodes = self._of_kind(nodes)
        # A private cluster claims more CPUs than the machine has if the user wants more workers than fit on it.
        private = self._settings.ray_address == "local"
        return capacity_of(nodes, machine_cpus=float(os.cpu_count() or 1) if private else None)

    def choose(self) -> None:
        """Choose the kind of the job's workers, if nodes may differ.

        Raises:
            PoolError: if no node has the requested kind.
        """
        nodes = fitting(self._alive(), self._settings)
        if self._kind or not self._may_differ(nodes):
            return
        self._query(nodes, _PATIENCE_S)
        known = self._described(nodes)
        if not known:
            errors = [report for report in self._reports.values() if isinstance(report, AutotuneError)]
            raise next(iter(errors), PoolError(f"no node of the Ray cluster answered within {_PATIENCE_S:g} s"))
        self._kind = choose_kind(known, self._settings)

    def allowed(self) -> frozenset[str]:
        """Return the ids of the nodes that may run a worker now.

        Raises:
            PoolError: if a worker fits on no node, or no node has the requested kind.
            ClusterLostError: if no node of the job's kind is left.
        """
        self.choose()
        nodes = fitting(self._alive(), self._settings)
        if self._kind:
            deadline = time.monotonic() + _PATIENCE_S
            self._query(nodes, 0.0)
            while not self._of_kind(nodes) and self._pending and time.monotonic() < deadline:
                self._query(nodes, 1.0)
            nodes = self._of_kind(nodes)
            if not nodes:
                raise ClusterLostError(
                    f"no node of the kind {self._kind!r} is left that can hold a worker; add one and resume the job"
                )
        if not nodes:
            raise PoolError(
                "a worker needs more resources than any node of the Ray cluster has; lower workers.cpus or workers.gpus"
            )
        return frozenset(node.id for node in nodes)

    def met(self, told: Told) -> None:
        """Take the first worker's report about its node; its kind becomes that of all workers if none was chosen.

        Raises:
            PoolError: if the worker does not have the requested kind.
        """
        if self._kind and self._kind != told.kind:
            raise PoolError(
                f"a worker is of the kind {told.kind!r}, but its node reported {self._kind!r}; restart the node"
            )
        if not self._kind:
            choose_kind([Node(id=told.node_id, cpus=0.0, gpus=0.0, kind=told.kind)], self._settings)
        self._kind = told.kind
        # A worker sees only its own GPUs, so it does not know every kind that workers of other jobs may have there.
        self._first_report = dataclasses.replace(told, kinds=frozenset())

    def _may_differ(self, nodes: list[Node]) -> bool:
        """Return whether the hardware of workers on these nodes may differ, so that the nodes must report it."""
        return len(nodes) > 1 or bool(self._settings.gpus and any(node.gpus > 1 for node in nodes))

    def _of_kind(self, nodes: list[Node]) -> list[Node]:
        return [node for node in self._described(nodes) if node.kind == self._kind]

    def _described(self, nodes: list[Node]) -> list[Node]:
        """Return the nodes that have reported their hardware, with their kinds."""
        found = []
        for node in nodes:
            report = self._reports.get(node.id, self._first_report)
            if isinstance(report, Told) and report.node_id == node.id:
                found.append(dataclasses.replace(node, kind=report.kind, kinds=report.kinds))
        return found

    def _alive(self) -> list[Node]:
        with cluster_errors():
            nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return [
            Node(id=node["NodeID"], cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
            for node in nodes
        ]

    def _query(self, nodes: list[Node], wait_s: float) -> None:
        """Query nodes that were not queried yet, and collect the reports that arrive within ``wait_s`` seconds."""
        for node in nodes if self._may_differ(nodes) else ():
            if node.id not in self._reports and node.id not in self._pending:
                on_node = _look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
                self._pending[node.id] = on_node.remote(self._backend, self._settings.gpus)
        references = list(self._pending.values())
        with cluster_errors():
            ready = ray.wait(references, num_returns=len(references), timeout=wait_s)[0] if references else []
        for node_id, reference in [item for item in self._pending.items() if item[1] in ready]:
            del self._pending[node_id]
            try:
                self._reports[node_id] = ray.get(reference)
            except RayTaskError as error:
                self._reports[node_id] = cause_of(error)
            except RayError:
                continue  # the node is gone, or will be queried again
