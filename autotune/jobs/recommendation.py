"""The recommended map of a job, and why, in a sentence or two."""

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.errors import NoFeasibleMapError
from autotune.jobs.front import pick, without_superseded
from autotune.jobs.records import TrialKind, TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS, decisive_workload, percentiles_of, ratio_of
from workers.measurement import Workload

#: Metrics that the sentence is about besides a latency ratio; trials of other programs may lack them.
_NEEDED = {"accuracy_drop", "weight_memory_mib"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The recommended map, and why."""

    trial: TrialRecord
    #: Full precision, as it was measured last.
    full: TrialRecord
    #: Name of the map for people.
    name: str
    #: Its gains over full precision, a phrase each; none for full precision itself.
    gains: Sequence[str]
    #: A sentence that compares it with the best uniform map or recipe.
    comparison: str

    def __str__(self) -> str:
        gains = f" {', '.join(self.gains)}." if self.gains else ""
        return f"Recommended: {self.name}.{gains} {self.comparison}"


def default_pick(spec: JobSpec) -> str:
    """Return how to pick a map where nobody says: the fastest within the limits, or the knee without limits."""
    return "fastest" if spec.constraints.constraints() else "knee"


def recommended(trials: Sequence[TrialRecord], spec: JobSpec) -> TrialRecord | None:
    """Return the map that ``default_pick`` picks; None if no measured map satisfies the constraints."""
    try:
        return pick(trials, default_pick(spec), spec.objectives, spec.constraints.constraints())
    except NoFeasibleMapError:
        return None


def recommend(trials: Sequence[TrialRecord], spec: JobSpec) -> Recommendation | None:
    """Return the recommended map with its gain over full precision, and over the best uniform map or recipe.

    Args:
        trials: of the job, full precision first.
        spec: the job.

    Returns:
        None if no measured map satisfies the constraints, or its figures are incomplete.
    """
    best = recommended(trials, spec)
    workload = decisive_workload(spec.objectives)
    ratio = ratio_of(workload).name
    if best is None or not best.figures.keys() >= _NEEDED | {ratio}:
        return None
    within = " within the limits" if spec.constraints.constraints() else ""
    counting = without_superseded(trials)
    full = next(trial for trial in counting if trial.key == trials[0].key)
    if best.key == full.key:
        alone = all(trial.key == full.key for trial in trials)
        comparison = (
            "No other map was measured; a longer search measures more."
            if alone
            else f"No other measured map{within} is a better choice."
        )
        return Recommendation(trial=best, full=full, name="full precision", gains=(), comparison=comparison)
    return Recommendation(
        trial=best,
        full=full,
        name=f"trial {best.number}" + (f" ({best.label})" if best.label else "") + best.addition,
        gains=_gains(best, full, workload),
        comparison=_beside_baselines(best, trials, counting, within, ratio),
    )


def recommendation(trials: Sequence[TrialRecord], spec: JobSpec) -> str | None:
    """Return what ``recommend`` does in words."""
    found = recommend(trials, spec)
    return None if found is None else str(found)


def _gains(best: TrialRecord, full: TrialRecord, workload: Workload) -> list[str]:
    ratio = ratio_of(workload)
    which = "" if workload is Workload.FORWARD else f" ({percentiles_of(workload)[50].label.lower()})"
    memory = METRICS["weight_memory_mib"]
    before, after = (trial.figures[memory.name].value for trial in (full, best))
    return [
        f"{ratio.text_with_unit(best.figures[ratio.name].value)} as full precision{which}",
        f"accuracy {-100.0 * best.figures['accuracy_drop'].value:+.2f} %",
        f"{memory.text(after)} instead of {memory.text_with_unit(before)}",
    ]


def _beside_baselines(
    best: TrialRecord, trials: Sequence[TrialRecord], counting: Sequence[TrialRecord], within: str, ratio: str
) -> str:
    """Return the comparison with the best map that needs no search: uniform, or a runtime's recipe."""
    baselines = {trial.key for trial in trials if trial.kind is TrialKind.BASELINE} - {trials[0].key}
    if best.key in baselines:
        return f"No measured mix{within} is a better choice than this {_sort_of(best)}."
    rivals = [t for t in counting if t.key in baselines and t.feasible and ratio in t.figures]
    if not rivals:
        return f"No uniform map was found{within}."
    rival = min(rivals, key=lambda trial: trial.figures[ratio].value)
    gain = 100.0 * (rival.figures[ratio].value / best.figures[ratio].value - 1.0)
    comparison = f"{gain:.0f} % faster than" if gain >= 0.5 else "About as fast as" if gain > -0.5 else "Slower than"
    return f"{comparison} the fastest {_sort_of(rival)}{within} ({rival.label}{rival.addition})."


def _sort_of(baseline: TrialRecord) -> str:
    return "default recipe" if (baseline.label or "").startswith("recipe ") else "uniform map"
