"""Which maps of a job to recover."""

import math
from collections.abc import Callable, Sequence

from autotune.errors import ConflictError, JobSpecError, NoFeasibleMapError
from autotune.jobs.front import PICKS, pick, without_superseded
from autotune.jobs.recommendation import recommended
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import PROMISING, JobSpec
from autotune.metrics.catalog import METRICS, decisive_ratio
from search_spaces.choice import CHOICES
from search_spaces.errors import unknown

#: Most maps that ``promising`` stands for, and how far they may break limits on quality, relative to the limit.
_MOST_PROMISING, _WITHIN_REACH = 4, 4.0


def check_recoverable(trial: TrialRecord) -> None:
    """Check that a trial's map can be recovered.

    Raises:
        ConflictError: if it was not measured in full, is recovered itself, or has no integer weights.
    """
    if trial.kind is TrialKind.RECOVERED:
        raise ConflictError(
            f"only a map with the model's own weights is recovered, but that of trial {trial.number} is recovered "
            f"already; take its parent, trial {trial.parent}"
        )
    if trial.state is not TrialState.COMPLETE:
        raise ConflictError(
            f"a recovered map has the speed of its parent, but trial {trial.number} was not measured in full "
            f"({trial.state}); take another trial"
        )
    if not _has_integers(trial):
        raise ConflictError(
            f"recovery learns integer weights, but the map of trial {trial.number} has none; take another trial"
        )


def to_recover(
    trials: Sequence[TrialRecord], spec: JobSpec, picks: Sequence[str], skip: Callable[[str], None] | None = None
) -> list[TrialRecord]:
    """Return the trials that ``picks`` name, each map once.

    Args:
        trials: all of the job, full precision first.
        spec: the job.
        picks: trial numbers, names as for ``pick``, or ``promising``, which leaves out what is recovered already.
        skip: gets why a pick cannot be recovered; None raises it.

    Raises:
        ConflictError: if a map that is named by itself cannot be recovered, or is recovered already.
        NotFoundError, JobSpecError, NoFeasibleMapError: see ``pick``.
    """
    found: dict[str, TrialRecord] = {}
    own = [trial for trial in trials if trial.kind is not TrialKind.RECOVERED]
    by_number = {trial.number: trial for trial in trials}
    known = {by_number[trial.parent].key: trial.number for trial in trials if trial.parent is not None}
    for how in picks:
        if how == PROMISING:
            found |= {trial.key: trial for trial in promising(own, spec) if trial.key not in {*found, *known}}
            continue
        if not how.isdecimal() and how not in PICKS:
            raise JobSpecError(unknown("pick", how, [PROMISING, *PICKS, "a trial number"]))
        try:
            trial = pick(trials if how.isdecimal() else own, how, spec.objectives, spec.constraints.constraints())
            check_recoverable(trial)
            if trial.key in known:
                raise ConflictError(
                    f"the map of trial {trial.number} is recovered already, as trial {known[trial.key]}; "
                    "take another one, or clone the job"
                )
        except (ConflictError, NoFeasibleMapError) as error:
            if skip is None:
                raise
            skip(str(error))
        else:
            found.setdefault(trial.key, trial)
    return list(found.values())


def promising(trials: Sequence[TrialRecord], spec: JobSpec) -> list[TrialRecord]:
    """Return the maps that are worth recovering, the fastest first.

    These are the recommended map, which may lose less, and faster ones that miss nothing but limits on quality, which
    may come within them. Of many, those that miss least.
    """
    ratio = decisive_ratio(spec.objectives).name
    able = [
        trial
        for trial in without_superseded(trials)
        if trial.state is TrialState.COMPLETE and ratio in trial.figures and _has_integers(trial)
    ]
    best = recommended(trials, spec)
    slowest = best.figures[ratio].value if best is not None and ratio in best.figures else math.inf
    chosen = [trial for trial in able if best is not None and trial.key == best.key]
    faster = [trial for trial in able if trial.figures[ratio].value < slowest and _within_reach(trial)]
    chosen += sorted(faster, key=_missed)[: _MOST_PROMISING - len(chosen)]
    return sorted(chosen, key=lambda trial: trial.figures[ratio].value)


def _missed(trial: TrialRecord) -> float:
    return max(trial.violations.values(), default=0.0)


def _within_reach(trial: TrialRecord) -> bool:
    broken = {name: by for name, by in trial.violations.items() if by > 0.0}
    return all(METRICS[name].is_quality and by <= _WITHIN_REACH for name, by in broken.items())


def _has_integers(trial: TrialRecord) -> bool:
    return any(CHOICES[choice].has_integer_weights for choice in trial.choices.values())
