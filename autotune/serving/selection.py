"""Which maps of a job to deploy together, under a limit on the bytes that they take together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.errors import ConflictError, NoFeasibleMapError
from autotune.jobs.front import nearest
from autotune.jobs.recommendation import recommended
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.metrics.from_measurement import MIB
from autotune.metrics.objectives import Objectives
from autotune.metrics.pareto import hypervolume
from search_spaces.layer import LayerKind
from workers.setup import ModelDescription

#: Choices that multiply by the same packed weights in every kernel of a linear layer.
_PACKED_ONCE = {"int8_static", "int8_dynamic"}
#: Bytes of each output's bias, which every prepared layer has for itself.
_BIAS_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Maps to deploy together."""

    #: In the order of their numbers.
    trials: tuple[TrialRecord, ...]
    recommended: TrialRecord
    #: Upper bound of the bytes of all weights.
    weight_bytes: int
    #: Number of a trial on the front -> why it is not among them.
    left_out: dict[int, str]


def selected(
    job: JobRecord, trials: Sequence[TrialRecord], members: Sequence[int], max_bytes: int | None = None
) -> Selection:
    """Return the maps of a job's front that are worth most together, the recommended one among them.

    Worth is the hypervolume that they dominate. Maps are added one by one: those that gain most, or those that gain
    most per byte, whichever ends at more (Leskovec et al., Cost-effective outbreak detection in networks, KDD 2007).

    Args:
        job: a job whose model was described.
        trials: all of the job, full precision first.
        members: numbers of the trials on its front.
        max_bytes: limit of the bytes of all weights together; None takes the whole front.

    Raises:
        NoFeasibleMapError: if no measured map satisfies the constraints.
        ConflictError: if the job's reference runs whole graphs, the recommended map runs elsewhere, or takes more than
            ``max_bytes``.
    """
    first = recommended(trials, job.spec) if trials else None
    if first is None or job.description is None:
        limits = job.spec.constraints.constraints()
        raise NoFeasibleMapError(f"job {job.id} has no map to deploy. {nearest(trials, limits)}")
    if first.backend:
        raise ConflictError(
            f"a bundle holds maps that run layer by layer, but the recommended map runs on {first.backend}; deploy it "
            f"alone with: autotune export {job.id} --pick {first.number}"
        )
    description = job.description
    least = union_bytes(description, [first])
    if max_bytes is not None and least > max_bytes:
        raise ConflictError(
            f"the recommended map alone takes {least / MIB:.1f} MiB, but the bundle may take {max_bytes / MIB:.1f}; "
            "raise --max-mib, or run a job with a limit on weight_memory_mib"
        )
    others = [trial for trial in trials if trial.number in members and trial.key != first.key]
    left_out = {trial.number: f"it runs on {trial.backend}" for trial in others if trial.backend}
    able = [trial for trial in others if not trial.backend]
    chosen = able if max_bytes is None else _worth_most(job, trials[0], first, able, max_bytes)
    kept = sorted([first, *chosen], key=lambda trial: trial.number)
    left_out |= {trial.number: "it does not fit into the limit" for trial in able if trial not in chosen}
    return Selection(
        trials=tuple(kept), recommended=first, weight_bytes=union_bytes(description, kept), left_out=left_out
    )


def union_bytes(description: ModelDescription, trials: Sequence[TrialRecord]) -> int:
    """Return the most bytes that the weights of maps take together, if every layer is prepared once per choice.

    Layers with learned weights are prepared once more. Kernels may share more weights than is counted.
    """
    total = description.other_bytes
    for layer in description.layers:
        wanted = {
            (trial.choices[layer.name], trial.number if _learned(trial, layer.name) else None) for trial in trials
        }
        bias = _BIAS_BYTES * layer.outputs if layer.has_bias else 0
        for owner in {owner for _, owner in wanted}:
            sizes = {name: description.layer_bytes[layer.name][name] for name, of in wanted if of == owner}
            packed_once = layer.kind is LayerKind.LINEAR and sizes.keys() >= _PACKED_ONCE
            total += sum(sizes.values()) - (sizes["int8_dynamic"] - bias if packed_once else 0)
    return total


def _learned(trial: TrialRecord, layer: str) -> bool:
    return trial.recovery is not None and layer in trial.recovery.layers


def _worth_most(
    job: JobRecord, full: TrialRecord, first: TrialRecord, able: Sequence[TrialRecord], max_bytes: int
) -> list[TrialRecord]:
    """Return the maps to add to the ``first`` one; ``full`` is full precision."""
    assert job.description is not None
    description, objectives = job.description, Objectives.named(job.spec.objectives)
    corner = objectives.reference_point(full.figures)

    def worth(trials: Sequence[TrialRecord]) -> float:
        points = objectives.points([trial.figures for trial in trials])
        return hypervolume(objectives.normalise(points, full.figures), corner)

    def added(score: Callable[[float, int], float]) -> list[TrialRecord]:
        kept, left = [first], list(able)
        while True:
            bytes_now, worth_now = union_bytes(description, kept), worth(kept)
            fitting = [trial for trial in left if union_bytes(description, [*kept, trial]) <= max_bytes]
            if not fitting:
                return kept[1:]
            best = max(
                fitting,
                key=lambda trial: score(
                    worth([*kept, trial]) - worth_now, union_bytes(description, [*kept, trial]) - bytes_now
                ),
            )
            kept.append(best)
            left.remove(best)

    both = (added(lambda gain, _: gain), added(lambda gain, size: gain / max(1, size)))
    return max(both, key=lambda chosen: worth([first, *chosen]))
