"""Search a real model, and compare predictions with measurements.

    python benchmarks/search/live.py examples/minilm.yaml
    python benchmarks/search/live.py benchmarks/search/char-decoder.yaml --task-file benchmarks/search/models.py

Prints the hypervolume of the measured maps of the front that the probes predict, and the errors of the latencies
predicted before each trial and, for the front, after the last one.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autotune.client.actions import submit
from autotune.jobs.budget import searched
from autotune.jobs.front import compute_front
from autotune.jobs.records import TrialRecord
from autotune.jobs.space import space_of
from autotune.jobs.spec import JobSpec
from autotune.metrics.from_measurement import Reference, figures_of
from autotune.metrics.objectives import Objectives
from autotune.metrics.pareto import hypervolume
from autotune.planner.knapsack import Maps
from autotune.planner.next_map import Planner
from autotune.planner.posterior import Posterior
from autotune.planner.prior import expect
from autotune.search.probing import probes_of
from autotune.search.run import run_job
from autotune.store.open import open_store
from search_spaces.space import SearchSpace
from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.timing.estimates import Figure

#: Maps of the predicted front that are measured.
PREDICTED = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--task-file", help="a Python file that registers the job's task")
    arguments = parser.parse_args()
    spec = JobSpec.load(arguments.job)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/live.db")
        job = run_job(store, submit(store, spec).id, task_file=arguments.task_file)
        trials, probes = store.trials(job.id), probes_of(store, job)
        store.close()
    assert job.description is not None
    space = space_of(spec, job.description)
    prior = expect(space, job.description, probes)
    names = [group.choices for group in space.free_groups]
    objectives, full = Objectives.named(spec.objectives), trials[0].figures

    planner = Planner(prior, names, objectives, spec.constraints.constraints(), seed=0)
    along = planner.predicted_front()
    chosen = along[np.unique(np.linspace(0, len(along) - 1, PREDICTED).round().astype(int))]
    reference = Reference.of_figures(full)
    evaluator = Evaluator(spec.worker_setup(arguments.task_file))
    predicted = [
        figures_of(evaluator.measure(Candidate(number=0, choices=choices_of(space, row))), reference) for row in chosen
    ]
    front = compute_front(trials, spec.objectives)
    members = [trial for trial in trials if trial.number in front.members]

    def volume(figures: Sequence[Mapping[str, Figure]]) -> float:
        points = objectives.normalise(objectives.points(figures), full)
        return hypervolume(points, objectives.reference_point(full))

    best = volume([*predicted, *(trial.figures for trial in trials if trial.feasible)])
    print(f"{spec.name}: {searched(trials)} trials, {len(members)} maps on the front")
    print(f"predicted front, {len(chosen)} maps measured: {100 * volume(predicted) / best:.1f} % of the hypervolume")
    print(f"front of the search: {100 * volume([trial.figures for trial in members]) / best:.1f} %")

    posterior, errors, front_maps = Posterior(prior, names), [], {}
    posterior.full_precision = full
    for trial in trials:
        if space.holds(trial.choices) and "latency_ratio" in trial.figures:
            row = map_of(space, trial)
            errors.append(miss(posterior, row, trial))
            posterior.observe(row, [trial.figures])
            front_maps[trial.number] = row
    on_front = [miss(posterior, front_maps[trial.number], trial) for trial in members if trial.number in front_maps]
    print_errors("latency predicted before each trial", errors)
    print_errors("latency of the front after the last trial", on_front)


def choices_of(space: SearchSpace, row: Sequence[int]) -> dict[str, str]:
    assignment = {g.name: g.choices[choice] for g, choice in zip(space.free_groups, row, strict=True)}
    return space.layer_choices(assignment)


def map_of(space: SearchSpace, trial: TrialRecord) -> Maps:
    assignment = space.assignment(trial.choices)
    return np.array([[group.choices.index(assignment[group.name]) for group in space.free_groups]])


def miss(posterior: Posterior, row: Maps, trial: TrialRecord) -> float:
    return float(posterior.predict(row)["latency_ratio"][0] / trial.figures["latency_ratio"].value - 1.0)


def print_errors(what: str, errors: Sequence[float]) -> None:
    sizes = np.abs(errors)
    print(
        f"{what}: off by {100 * np.median(sizes):.1f} % (median), {100 * np.quantile(sizes, 0.9):.1f} % (90th "
        f"percentile); {100 * np.mean(sizes <= 0.05):.0f} % of {len(sizes)} within 5 %"
    )


if __name__ == "__main__":
    main()
