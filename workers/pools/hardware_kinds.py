"""Selection of the kind of hardware for a job's workers: pure functions of the nodes and the job's settings."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from workers.errors import PoolError
from workers.pools.base import Capacity
from workers.setup import PoolSettings

#: Tolerance for sums of fractional CPUs and GPUs.
_TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a cluster."""

    id: str
    cpus: float
    gpus: float
    #: Kind of hardware that the job's workers would have there; empty if unknown.
    kind: str = ""
    #: Kinds of hardware that workers of any job may have there; empty if unknown.
    kinds: frozenset[str] = frozenset()

    def workers(self, cpus: float, gpus: float) -> int:
        """Return how many workers fit on the node, with ``cpus`` CPUs and ``gpus`` GPUs each."""
        needs = [(cpus, self.cpus), (gpus, self.gpus)]
        return min((int(have / each + _TINY) for each, have in needs if each > 0), default=0)


def fitting(nodes: Sequence[Node], settings: PoolSettings) -> list[Node]:
    """Return the nodes with room for at least one worker of the job; a worker needs one CPU by default."""
    cpus = 1.0 if settings.cpus is None else settings.cpus
    return [node for node in nodes if node.workers(cpus, settings.gpus)]


def capacity_of(nodes: Sequence[Node], *, machine_cpus: float | None = None) -> Capacity:
    """Return the total resources of the nodes; ``machine_cpus`` overrides the CPUs of the smallest machine."""
    known = all(node.kinds for node in nodes)
    return Capacity(
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        machine_cpus=machine_cpus or min((node.cpus for node in nodes if node.cpus), default=1.0),
        kinds=frozenset().union(*(node.kinds for node in nodes)) if known else frozenset(),
    )


def choose_kind(nodes: Sequence[Node], settings: PoolSettings) -> str:
    """Return the kind of the job's workers: the kind used before, the one the user names, or the one with most room.

    Args:
        nodes: nodes with room for a worker, whose kind is known.
        settings: the job's settings.

    Raises:
        PoolError: if no node has the requested kind.
    """
    kinds = Counter(node.kind for node in nodes)
    if settings.kind:
        if settings.kind not in kinds:
            raise PoolError(
                f"the job's workers were of the kind {settings.kind!r} before, but {_kind_counts(kinds)}; "
                "add a node of that kind, or clone the job to start again on another kind"
            )
        return settings.kind
    if settings.hardware is not None:
        return named_kind(settings.hardware, kinds)
    # Break ties by name, so that the same cluster always yields the same kind.
    return max(sorted(kinds), key=lambda kind: _room([node for node in nodes if node.kind == kind], settings))


def is_called(kind: str, name: str) -> bool:
    """Return whether ``name`` is the kind's name or a part of it, ignoring case."""
    return name.casefold() in kind.casefold()


def named_kind(name: str, kinds: Collection[str]) -> str:
    """Return the kind whose name equals ``name``, or else contains it.

    Raises:
        PoolError: if no kind or several kinds match.
    """
    if name in kinds:
        return name
    found = sorted(kind for kind in set(kinds) if is_called(kind, name))
    if not found:
        raise PoolError(
            f"workers.hardware is {name!r}, but {_kind_counts(Counter(kinds))}; "
            "name one of these, or add a node of that kind"
        )
    if len(found) > 1:
        raise PoolError(
            f"workers.hardware is {name!r}, which is part of {' and '.join(map(repr, found))}; "
            "give more of the name of the kind you want"
        )
    return found[0]


def _room(nodes: Sequence[Node], settings: PoolSettings) -> int:
    """Return how many workers of the job fit on the nodes."""
    cpus = capacity_of(nodes).cpus_per_worker(settings.cpus, settings.count)
    return sum(node.workers(cpus, settings.gpus) for node in nodes)


def _kind_counts(kinds: Counter[str]) -> str:
    known = ", ".join(f"{count} of {kind!r}" for kind, count in sorted(kinds.items()))
    return f"the nodes that can hold a worker are {known}"
