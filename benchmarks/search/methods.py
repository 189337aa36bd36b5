"""Search a real model with and without additional choices, and compare the fronts.

    python benchmarks/search/methods.py examples/minilm.yaml int8_static_smooth int4_weight_only_gptq

Prints the hypervolume of each front as a share of that of both together, and its lowest divergence within a few shares
of the bytes of full precision. Both searches use the budget and the seed of the job.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.client.actions import submit
from autotune.jobs.front import compute_front
from autotune.jobs.spec import JobSpec
from autotune.metrics.objectives import Objectives
from autotune.metrics.pareto import hypervolume
from autotune.search.run import run_job
from autotune.store.open import open_store
from workers.timing.estimates import Figure

#: Weight bytes as shares of those of full precision.
SHARES = (0.5, 0.3, 0.25, 0.2, 0.17, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("choices", nargs="+", help="choices in addition to those of the job")
    parser.add_argument("--task-file", help="a Python file that registers the job's task")
    arguments = parser.parse_args()
    spec = JobSpec.load(arguments.job)
    fronts: dict[str, list[Mapping[str, Figure]]] = {}
    for title, more in (("as it is", ()), (f"with {', '.join(arguments.choices)}", arguments.choices)):
        full, fronts[title] = searched(spec, more, arguments.task_file)
    objectives = Objectives.named(spec.objectives)

    def volume(figures: Sequence[Mapping[str, Figure]]) -> float:
        points = objectives.normalise(objectives.points(figures), full)
        return hypervolume(points, objectives.reference_point(full))

    best = volume([figures for front in fronts.values() for figures in front])
    for title, front in fronts.items():
        print(f"{spec.name}, {title}: {len(front)} maps, {100 * volume(front) / best:.1f} % of the hypervolume")
        for share in SHARES:
            most = share * full["weight_memory_mib"].value
            within = [f["divergence"].value for f in front if f["weight_memory_mib"].value <= most]
            print(f"  within {share:.0%} of the bytes: " + (f"divergence {min(within):.1e}" if within else "none"))


def searched(
    spec: JobSpec, more: Sequence[str], task_file: str | None
) -> tuple[Mapping[str, Figure], list[Mapping[str, Figure]]]:
    """Return the figures of full precision and of the front."""
    search = spec.search.model_copy(update={"choices": (*spec.search.choices, *more)})
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/methods.db")
        job = run_job(store, submit(store, spec.model_copy(update={"search": search})).id, task_file=task_file)
        trials = store.trials(job.id)
        store.close()
    front = compute_front(trials, spec.objectives)
    return trials[0].figures, [trial.figures for trial in trials if trial.number in front.members]


if __name__ == "__main__":
    main()
