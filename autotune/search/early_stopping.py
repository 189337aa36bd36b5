"""Thresholds sent with each candidate, so that its worker can stop measuring a hopeless one."""

from collections.abc import Mapping, Sequence

from autotune.jobs.records import TrialRecord
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference
from workers.candidate import Incumbent
from workers.timing.estimates import Figure

_LATENCIES = ("latency_p50_ms", "latency_ratio")
#: Objectives that are known before the latency is measured.
_QUALITIES = ("accuracy", "accuracy_drop", "divergence")
_KNOWN_FIRST = (*_QUALITIES, "weight_memory_mib")


def incumbents(
    front: Sequence[TrialRecord],
    known: Mapping[str, Figure],
    objectives: Sequence[str],
    constraints: Sequence[Constraint],
    reference: Reference,
) -> tuple[Incumbent, ...]:
    """Return the incumbents that a candidate must be faster than, unless its quality is higher.

    If another objective is measured after the latency, only the latency limit counts. Before the first
    feasible map there are no incumbents, because every candidate may be the nearest to feasible.

    Args:
        front: the trials on the front.
        known: figures of the candidate that are known without measurement.
        objectives: names of the job's objectives.
        constraints: the job's; one on the median latency is an incumbent that higher quality does not excuse.
        reference: figures of full precision.
    """
    if not front:
        return ()
    others = [name for name in objectives if name not in _LATENCIES]
    found = [
        Incumbent(latency_ratio=constraint.limit / reference.latency_p50_ms)
        for constraint in constraints
        if constraint.metric == "latency_p50_ms"
    ]
    if len(others) == len(objectives) or any(name not in _KNOWN_FIRST for name in others):
        return tuple(found)
    for trial in front:
        memory = "weight_memory_mib"
        if memory in others and trial.figures[memory].value > known[memory].value:
            continue
        ratio = trial.figures["latency_ratio"]
        found.append(
            Incumbent(
                # The incumbent's figure is uncertain too, and biased by luck.
                latency_ratio=ratio.value if ratio.high is None else ratio.high,
                accuracy=trial.figures["accuracy"].value if {"accuracy", "accuracy_drop"} & set(others) else None,
                divergence=trial.figures["divergence"].value if "divergence" in others else None,
            )
        )
    return tuple(found)


def accuracy_floor(constraints: Sequence[Constraint], reference: Reference, *, shifted: bool = False) -> float | None:
    """Return the accuracy below which a candidate cannot be feasible; None without such a constraint."""
    name, full = ("shifted_accuracy", reference.shifted_accuracy) if shifted else ("accuracy", reference.accuracy)
    limits = {constraint.metric: constraint.limit for constraint in constraints}
    floors = [limits[name]] if name in limits else []
    drop = limits.get(f"{name}_drop")
    if drop is not None and full is not None:
        floors.append(full - drop * abs(full))
    return max(floors, default=None)
