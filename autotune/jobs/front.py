"""The Pareto front of a job's trials, and the choice of one map from it."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from autotune.errors import JobSpecError, NoFeasibleMapError, NotFoundError
from autotune.jobs.records import FrontRecord, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import Pick
from autotune.metrics.catalog import METRICS, Constraint, decisive_ratio, decisive_workload, percentiles_of
from autotune.metrics.objectives import Objectives, minimised
from autotune.metrics.pareto import hypervolume, knee, non_dominated
from autotune.metrics.ties import qualities, tied
from search_spaces.errors import unknown
from workers.timing.estimates import Figure

#: Name of a pick -> the metric that decides; of equal maps, the divergence does. The fastest map has the lowest median
#: latency of the workload that the objectives are about.
_PICKS = {"fastest": "", "smallest": "weight_memory_mib", "most-accurate": "accuracy"}
PICKS: tuple[str, ...] = get_args(Pick)


def find_trial(trials: Sequence[TrialRecord], number: int) -> TrialRecord:
    """Return the trial with ``number``.

    Raises:
        NotFoundError: if there is no such trial.
    """
    for trial in trials:
        if trial.number == number:
            return trial
    raise NotFoundError(f"no trial {number}; 'autotune front' lists those on the front and the baselines")


def violations(figures: Mapping[str, Figure], constraints: Sequence[Constraint]) -> dict[str, float]:
    """Return metric -> violation for every constraint whose metric is known; at most 0 if it holds."""
    return {c.metric: c.violation(figures[c.metric].value) for c in constraints if c.metric in figures}


def without_superseded(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return one trial per map: the final measurement if it is complete, otherwise the first measurement.

    The best of many noisy figures are biased by luck; a second measurement is not.
    """
    final = {trial.key for trial in trials if trial.kind is TrialKind.FINAL and trial.state is TrialState.COMPLETE}
    return [trial for trial in trials if (trial.kind is TrialKind.FINAL) == (trial.key in final)]


def needing_final_run(
    trials: Sequence[TrialRecord], objectives: Sequence[str], first: str = "knee"
) -> list[TrialRecord]:
    """Return the trials of the named picks that have no final measurement yet; empty without a feasible map.

    Recovered maps are no picks here: the latency of their parents is theirs. ``first`` is the pick that comes first,
    because time may end before all are measured.
    """
    trials = [trial for trial in trials if trial.kind is not TrialKind.RECOVERED]
    tried = {trial.key for trial in trials if trial.kind is TrialKind.FINAL}
    if not any(trial.feasible for trial in without_superseded(trials)):
        return []
    picked = {trial.key: trial for trial in (pick(trials, how, objectives) for how in (first, *PICKS))}
    return [trial for key, trial in picked.items() if key not in tried]


def compute_front(
    trials: Sequence[TrialRecord], objectives: Sequence[str], *, among: Sequence[TrialRecord] | None = None
) -> FrontRecord:
    """Return the front of the feasible trials and its hypervolume.

    Args:
        trials: all trials; the first is full precision, which sets the scale of the hypervolume.
        objectives: names of the metrics to trade off.
        among: the trials that may be on the front; None means all.
    """
    chosen = Objectives.named(objectives)
    feasible = [trial for trial in without_superseded(trials if among is None else among) if trial.feasible]
    points = chosen.points([trial.figures for trial in feasible])
    mask = non_dominated(points)
    full_precision = trials[0].figures
    volume = hypervolume(chosen.normalise(points[mask], full_precision), chosen.reference_point(full_precision))
    members = sorted(trial.number for trial, kept in zip(feasible, mask, strict=True) if kept)
    return FrontRecord(trials=len(trials), members=tuple(members), hypervolume=volume)


class LiveFront:
    """The front of a running job; most updates take time that does not grow with the number of trials."""

    def __init__(
        self, trials: Sequence[TrialRecord], objectives: Sequence[str], recorded: FrontRecord | None = None
    ) -> None:
        """Start from a job's trials and its latest recorded front."""
        self._objectives = tuple(objectives)
        self._recorded = recorded
        #: Every trial; the first is full precision.
        self.trials = list(trials)
        #: The trials on the front.
        self.members = [trial for trial in trials if recorded and trial.number in recorded.members]

    def add(self, trial: TrialRecord) -> FrontRecord | None:
        """Add a trial, and return the front if the trial changed it."""
        self.trials.append(trial)
        if self.trials[0].state is not TrialState.COMPLETE:
            return None  # without full precision there is no scale for the hypervolume
        # A final measurement replaces figures, so maps that the old figures dominated may now be on the front.
        recompute = self._recorded is None or trial.kind is TrialKind.FINAL
        among = self.trials if recompute else [*self.members, trial]
        front = compute_front(self.trials, self._objectives, among=among)
        self.members = [member for member in among if member.number in front.members]
        if self._recorded and front.members == self._recorded.members:
            return None
        self._recorded = front
        return front


def pick(
    trials: Sequence[TrialRecord], how: str, objectives: Sequence[str], limits: Sequence[Constraint] = ()
) -> TrialRecord:
    """Return one trial: the knee of the front, an extreme of the feasible trials, or the trial of that number.

    An extreme in a metric that is not an objective of the job may lie off the front. A complete final measurement
    replaces the first trial of its map. ``limits`` are those of the job, for the error.

    Raises:
        NoFeasibleMapError: if the front is empty; the message names the nearest trial and what it misses.
        NotFoundError: if there is no trial with that number.
        JobSpecError: if ``how`` is neither a number nor a known name.
    """
    counting = without_superseded(trials)
    if how.isdecimal():
        chosen_trial = find_trial(trials, int(how))
        return next((trial for trial in counting if trial.key == chosen_trial.key), chosen_trial)
    if how not in PICKS:
        raise JobSpecError(unknown("pick", how, [*PICKS, "a trial number"]))
    chosen = Objectives.named(objectives)
    feasible = [trial for trial in counting if trial.feasible]
    if not feasible:
        raise NoFeasibleMapError(f"no map satisfies the constraints. {nearest(trials, limits)}")
    if how in _PICKS:
        decisive = _PICKS[how] or percentiles_of(decisive_workload(objectives))[50].name
        metrics = [METRICS[decisive], METRICS["divergence"]]
        return min(feasible, key=lambda t: tuple(minimised(m, t.figures[m.name].value) for m in metrics))
    points = chosen.points([trial.figures for trial in feasible])
    front = np.flatnonzero(non_dominated(points))
    return feasible[int(front[knee(points[front])])]


def ties(front: Sequence[TrialRecord], objectives: Sequence[str]) -> frozenset[int]:
    """Return the numbers of the maps on the front that are not measurably faster than one of better quality there."""
    name = decisive_ratio(objectives).name
    known = [trial for trial in front if name in trial.figures]
    if not known:
        return frozenset()
    ratios = [trial.figures[name] for trial in known]
    low = np.array([ratio.value if ratio.low is None else ratio.low for ratio in ratios])
    high = np.array([ratio.value if ratio.high is None else ratio.high for ratio in ratios])
    quality = Objectives.named(qualities(objectives)).points([trial.figures for trial in known])
    return frozenset(trial.number for trial, tie in zip(known, tied(low, high, quality), strict=True) if tie)


def nearest_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the trial with the smallest sum of violations; None if none was measured.

    Trials with more known constraints come first, because some of those ruled out early were never measured.
    """
    known = [trial for trial in trials if trial.violations and trial.figures]
    return min(known, key=lambda t: (-len(t.violations), _total_violation(t)), default=None)


def nearest(trials: Sequence[TrialRecord], limits: Sequence[Constraint] = ()) -> str:
    """Return a sentence about the nearest trial: which limits it misses, and by how much for each of ``limits``."""
    best = nearest_trial(trials)
    if best is None:
        return "No trial was measured"
    by_name = {limit.metric: limit for limit in limits}
    missed = [name for name, violation in best.violations.items() if violation > 0]
    how_far = [by_name[name].missed_by(best.figures[name].value) for name in missed if name in by_name]
    told = f": {'; '.join(how_far)}" if how_far else f", which misses {' and '.join(missed)}"
    return f"Nearest is trial {best.number}{told}"


def _total_violation(trial: TrialRecord) -> float:
    return sum(max(0.0, violation) for violation in trial.violations.values())
