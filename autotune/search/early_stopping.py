"""Thresholds sent with each candidate, so that its worker can stop measuring a hopeless one."""

import math
from collections.abc import Mapping, Sequence

from autotune.jobs.records import TrialKind, TrialRecord
from autotune.metrics.catalog import Constraint, Kind, decisive_workload, metric_of, percentiles_of, ratio_of
from autotune.metrics.from_measurement import Reference
from workers.candidate import Incumbent, QualityLimit
from workers.measurement import Split
from workers.timing.estimates import Figure

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
    feasible map there are no incumbents, because every candidate may be the nearest to feasible. Recovered maps are not
    among them, because a candidate that loses more may gain as much by recovery.

    Args:
        front: the trials on the front.
        known: figures of the candidate that are known without measurement.
        objectives: names of the job's objectives.
        constraints: the job's; one on the median of the decisive latency is an incumbent that higher quality does not
            excuse.
        reference: figures of full precision.
    """
    front = [trial for trial in front if trial.kind is not TrialKind.RECOVERED]
    if not front:
        return ()
    workload = decisive_workload(objectives)
    median, relative = percentiles_of(workload)[50].name, ratio_of(workload).name
    others = [name for name in objectives if name not in (median, relative)]
    found = [
        Incumbent(latency_ratio=constraint.limit / reference.p50_ms[workload])
        for constraint in constraints
        if constraint.metric == median
    ]
    if len(others) == len(objectives) or any(name not in _KNOWN_FIRST for name in others):
        return tuple(found)
    for trial in front:
        memory = "weight_memory_mib"
        if memory in others and trial.figures[memory].value > known[memory].value:
            continue
        ratio = trial.figures[relative]
        found.append(
            Incumbent(
                # The incumbent's figure is uncertain too, and biased by luck.
                latency_ratio=ratio.value if ratio.high is None else ratio.high,
                accuracy=trial.figures["accuracy"].value if {"accuracy", "accuracy_drop"} & set(others) else None,
                divergence=trial.figures["divergence"].value if "divergence" in others else None,
            )
        )
    return tuple(found)


def quality_limits(constraints: Sequence[Constraint], reference: Reference) -> dict[Split, QualityLimit]:
    """Return split -> the quality that a candidate needs to be feasible."""
    limits = {constraint.metric: constraint.limit for constraint in constraints}
    found = {}
    for split, full in ((Split.EVALUATION, reference.accuracy), (Split.SHIFTED, reference.shifted_accuracy)):
        names = {kind: metric_of(kind, split).name for kind in (Kind.ACCURACY, Kind.ACCURACY_DROP, Kind.DIVERGENCE)}
        drop = limits.get(names[Kind.ACCURACY_DROP])
        floor = -math.inf if drop is None or full is None else full - drop * abs(full)
        found[split] = QualityLimit(
            least_accuracy=max(floor, limits.get(names[Kind.ACCURACY], -math.inf)),
            most_divergence=limits.get(names[Kind.DIVERGENCE], math.inf),
        )
    return found
