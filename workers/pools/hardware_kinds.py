"""Which kind of hardware the workers of a job are of: pure functions of nodes and of what the job asks for."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from workers.errors import PoolError
from workers.pools.base import Capacity
from workers.setup import PoolSettings

#: Fractions of CPUs and GPUs do not add up exactly.
_TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a cluster."""

    id: str
    cpus: float
    gpus: float
    #: Kind of hardware the job's workers would be of there; empty if it is not known.
    kind: str = ""
    #: Kinds that workers of any job may be of there; empty if they are not known.
    kinds: frozenset[str] = frozenset()

    def workers(self, cpus: float, gpus: float) -> int:
        """Return how many workers with so many CPUs and GPUs each the node holds."""
        needs = [(cpus, self.cpus), (gpus, self.gpus)]
        return min((int(have / each + _TINY) for each, have in needs if each > 0), default=0)


def fitting(nodes: Sequence[Node], settings: PoolSettings) -> list[Node]:
    """Return the nodes that hold one of the job's workers at least; without a wish for CPUs it needs one."""
    cpus = 1.0 if settings.cpus is None else settings.cpus
    return [node for node in nodes if node.workers(cpus, settings.gpus)]


def capacity_of(nodes: Sequence[Node], *, machine_cpus: float | None = None) -> Capacity:
    """Return what nodes have together; their smallest machine has ``machine_cpus`` where its node claims more."""
    known = all(node.kinds for node in nodes)
    return Capacity(
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        machine_cpus=machine_cpus or min((node.cpus for node in nodes if node.cpus), default=1.0),
        kinds=frozenset().union(*(node.kinds for node in nodes)) if known else frozenset(),
    )


def choose_kind(nodes: Sequence[Node], settings: PoolSettings) -> str:
    """Return the kind of the job's workers: that of earlier ones, that the user names, or that with most room.

    Args:
        nodes: the nodes that hold a worker, and whose kind is known.
        settings: what the job asks for.

    Raises:
        PoolError: if no node is of the kind that is wanted.
    """
    kinds = Counter(node.kind for node in nodes)
    if settings.kind:
        if settings.kind not in kinds:
            raise PoolError(
                f"the job's workers were of the kind {settings.kind!r} before, but {_told(kinds)}; "
                "add a node of that kind, or clone the job to start anew on another"
            )
        return settings.kind
    if settings.hardware is not None:
        return named_kind(settings.hardware, kinds)
    # By name if there is equal room, so that the same cluster always gives the same answer.
    return max(sorted(kinds), key=lambda kind: _room([node for node in nodes if node.kind == kind], settings))


def is_called(kind: str, name: str) -> bool:
    """Return whether ``name`` is that of the kind or a part of it, in any case."""
    return name.casefold() in kind.casefold()


def named_kind(name: str, kinds: Collection[str]) -> str:
    """Return the one of ``kinds`` that is called ``name``, wholly if one is, else in part.

    Raises:
        PoolError: if none or several are.
    """
    if name in kinds:
        return name
    found = sorted(kind for kind in set(kinds) if is_called(kind, name))
    if not found:
        raise PoolError(
            f"workers.hardware is {name!r}, but {_told(Counter(kinds))}; name one of these, or add a node of that kind"
        )
    if len(found) > 1:
        raise PoolError(
            f"workers.hardware is {name!r}, which is part of {' and '.join(map(repr, found))}; "
            "name more of the kind you want"
        )
    return found[0]


def _room(nodes: Sequence[Node], settings: PoolSettings) -> int:
    """Return how many workers of the job the nodes hold."""
    cpus = capacity_of(nodes).cpus_per_worker(settings.cpus, settings.count)
    return sum(node.workers(cpus, settings.gpus) for node in nodes)


def _told(kinds: Counter[str]) -> str:
    known = ", ".join(f"{count} of {kind!r}" for kind, count in sorted(kinds.items()))
    return f"the nodes that can hold a worker are {known}"
