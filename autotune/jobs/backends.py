"""The backends of a job: which of them run the model, and which were left out."""

from collections.abc import Sequence

from autotune.jobs.front import without_superseded
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import decisive_ratio
from workers.setup import ModelDescription


def left_out(spec: JobSpec, description: ModelDescription) -> dict[str, str]:
    """Return name -> why, for backends of a job that cannot measure its maps; never that of the reference."""
    found = dict(description.left_out)
    for name in description.others:
        workloads = description.on(name).workloads
        missing = [workload for workload in spec.workloads() if workload not in workloads]
        if missing:
            found[name] = f"it runs the forward pass only, and the job needs the workload {missing[0]}"
    return found


def competing(spec: JobSpec, description: ModelDescription) -> list[str]:
    """Return the names of the backends that measure a job's maps, that of the reference first."""
    without = left_out(spec, description)
    return [name for name in description.backends if name not in without]


def worth_of_backends(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[str]:
    """Return what the backend alone is worth: a phrase for each map that was measured on several, full precision first.

    Two uniform maps of one choice need not be the same map, because backends refuse different layers.
    """
    ratio = decisive_ratio(objectives)
    found: dict[tuple[tuple[str, str], ...], list[TrialRecord]] = {_map_of(trial): [] for trial in trials}
    for trial in without_superseded(trials):
        if trial.kind is TrialKind.RECOVERED:
            continue  # its latency is that of a map that is here already
        if trial.state is TrialState.COMPLETE and ratio.name in trial.figures:
            found[_map_of(trial)].append(trial)
    phrases = []
    for alike in (sorted(of_map, key=lambda trial: trial.backend) for of_map in found.values()):
        speeds = {trial.ran_on: ratio.text(trial.figures[ratio.name].value) for trial in alike}
        if len(speeds) > 1:
            name = alike[0].label or f"the map of trial {alike[0].number}"
            phrases.append(f"{name}: {', '.join(f'{speed} on {backend}' for backend, speed in speeds.items())}")
    return phrases


def _map_of(trial: TrialRecord) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(trial.choices.items()))
