"""Compare samplers on recorded models with equal budgets, probes included.

    python benchmarks/search/compare.py [--seeds 5] [--tasks minilm-lee digits-vit] [--quick]

A unit is one full evaluation of a map. The figure is the hypervolume of what was measured, without noise,
as a share of the best known; its interval is a bootstrap over the seeds.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from replay import FOLDER, Recording, full_precision

from autotune.expectations import expect
from autotune.front import violations
from autotune.job_spec import SamplerName
from autotune.knapsack import Maps, cheapest_for_each_budget
from autotune.metrics import Constraint, Figure
from autotune.objectives import Objectives
from autotune.pareto import hypervolume
from autotune.planner import Planner
from autotune.store.clock import now
from autotune.store.records import TrialKind, TrialRecord, TrialState
from autotune.study import Study
from search_spaces.choice import FULL_PRECISION, choice_named
from search_spaces.quantization_map import map_key

OBJECTIVES = ("latency_ratio", "divergence")
MARKS = (20, 40, 80, 150, 300)
RESULTS = Path(__file__).parents[1] / "results"
#: Maps measured so far, in order, each as layer -> choice.
Search = Callable[[Recording, int, int], Iterator[Mapping[str, str]]]


def measured(
    recording: Recording,
    number: int,
    choices: Mapping[str, str],
    noise: np.random.Generator,
    limits: Sequence[Constraint],
) -> TrialRecord:
    figures = recording.figures(choices, noise)
    return TrialRecord(
        job_id="", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices=choices,
        key=map_key(choices), figures=figures, violations=violations(figures, limits), finished_at=now(),
    )  # fmt: skip


def limit_of(recording: Recording) -> Constraint:
    """Return a limit on the loss halfway, in decades, between the uniform bf16 and the uniform static int8 map."""
    losses = [
        recording.figures(_filled(recording, choice))["accuracy_drop"].value for choice in ("bf16", "int8_static")
    ]
    return Constraint(metric="accuracy_drop", limit=float(np.sqrt(np.prod(losses))), at_most=True)


def by_study(name: SamplerName, *, start: str = "uniform", limited: bool = False) -> Search:
    """Return the search that the product runs: full precision, uniform maps, then what the sampler asks for."""

    def search(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
        noise, space = np.random.default_rng(seed), recording.space
        probed = name is SamplerName.SENSITIVITY
        expectations = expect(space, recording.description, recording.probes if probed else None)
        limits = (limit_of(recording),) if limited else ()
        study = Study(space, OBJECTIVES, limits, name, seed=seed, trials=units, slots=1, expectations=expectations)
        first = measured(recording, 0, full_precision(recording), noise, limits)
        study.add(first)
        yield first.choices
        trials = [first]

        def starts() -> Iterator[Mapping[str, str]]:
            if start == "cold":
                return
            yield from map(space.uniform, space.uniform_choices())
            if start == "probes":
                yield from (
                    dict(zip([g.name for g in space.free_groups], names, strict=True))
                    for names in predicted_front(recording, 24)
                )

        design = starts()
        while len(trials) < units:
            assignment = next(design, None)
            proposal = study.ask() if assignment is None else study.propose(assignment)
            if proposal is None:
                if assignment is None:
                    return
                continue
            trial = measured(recording, len(trials), space.layer_choices(proposal.assignment), noise, limits)
            study.tell(proposal, trial)
            trials.append(trial)
            yield trial.choices

    return search


def predicted_front(recording: Recording, count: int) -> Iterator[list[str]]:
    """Yield the choices of ``count`` maps evenly spread along the front that the probes predict."""
    maps = maps_along_front(recording)
    chosen = maps[np.unique(np.linspace(0, len(maps) - 1, count).round().astype(int))]
    for row in chosen:
        yield [group.choices[choice] for group, choice in zip(recording.space.free_groups, row, strict=True)]


def maps_along_front(recording: Recording) -> Maps:
    groups = recording.space.free_groups
    expectations = expect(recording.space, recording.description, recording.probes)
    planner = Planner(expectations, [g.choices for g in groups], Objectives.named(OBJECTIVES), (), seed=0)
    return planner.predicted_front()


def probes_alone(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Measure the front the probes predict, and learn nothing from it."""
    groups = [group.name for group in recording.space.free_groups]
    for names in predicted_front(recording, units):
        yield recording.space.layer_choices(dict(zip(groups, names, strict=True)))


def greedy_fallback(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Quantize all to the fastest int8, probe each layer one at a time, give the worst bf16 one by one."""
    space = recording.space
    fast = min(
        ("int8_static", "int8_dynamic"), key=lambda c: recording.figures(_filled(recording, c))["latency_ratio"].value
    )
    yield full_precision(recording)
    yield (quantized := _filled(recording, fast))
    losses = {}
    for group in space.free_groups:
        if fast in group.choices:
            alone = full_precision(recording) | dict.fromkeys(group.layers, fast)
            yield alone
            losses[group] = recording.figures(alone)["divergence"].value
    for group in sorted(losses, key=losses.__getitem__, reverse=True):
        quantized = quantized | dict.fromkeys(group.layers, "bf16" if "bf16" in group.choices else FULL_PRECISION.name)
        yield quantized


def effective_bits(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Minimise the probed divergence for each budget of bits: a knapsack on size, blind to time."""
    groups = recording.space.free_groups
    expectations = expect(recording.space, recording.description, recording.probes)
    bits = np.full(expectations.divergence.shape, np.inf)
    for row, group in enumerate(groups):
        for column, choice in enumerate(group.choices):
            bits[row, column] = choice_named(choice).precision.bits * len(group.layers)
    maps = cheapest_for_each_budget(expectations.divergence, bits)
    for row in maps[np.unique(np.linspace(0, len(maps) - 1, units).round().astype(int))]:
        yield recording.space.layer_choices({g.name: g.choices[c] for g, c in zip(groups, row, strict=True)})


def _filled(recording: Recording, choice: str) -> dict[str, str]:
    return recording.space.layer_choices(recording.space.uniform(choice))


#: Name -> search, and whether it starts from probes, whose cost it then bears.
METHODS: dict[str, tuple[Search, bool]] = {
    "sensitivity": (by_study(SamplerName.SENSITIVITY), True),
    "probes, no learning": (probes_alone, True),
    "effective-bits knapsack": (effective_bits, True),
    "nsga2, from the probes' front": (by_study(SamplerName.NSGA2, start="probes"), True),
    "nsga2, uniform maps first": (by_study(SamplerName.NSGA2), False),
    "nsga2, cold": (by_study(SamplerName.NSGA2, start="cold"), False),
    "tpe, uniform maps first": (by_study(SamplerName.TPE), False),
    "random, uniform maps first": (by_study(SamplerName.RANDOM), False),
    "greedy fallback": (greedy_fallback, False),
}


def points_of(recording: Recording, maps: list[Mapping[str, str]]) -> np.ndarray:
    return Objectives.named(OBJECTIVES).points([recording.figures(choices) for choices in maps])


def volume(recording: Recording, points: np.ndarray) -> float:
    """Return the hypervolume in the product's own normalisation."""
    objectives, full = Objectives.named(OBJECTIVES), _full_figures(recording)
    return hypervolume(objectives.normalise(points, full), objectives.reference_point(full))


def _full_figures(recording: Recording) -> dict[str, Figure]:
    return recording.figures(full_precision(recording))


def exact_front(recording: Recording) -> np.ndarray:
    """Return the points of the knapsack on the true costs of every layer alone."""
    groups = recording.space.free_groups
    shape = (len(groups), max(len(group.choices) for group in groups))
    divergence, latency = np.full(shape, np.inf), np.full(shape, np.inf)
    for row, group in enumerate(groups):
        for column, choice in enumerate(group.choices):
            rows = [recording.rows[layer, choice] for layer in group.layers]
            divergence[row, column] = np.mean(recording.products[rows].sum(axis=0, dtype=np.float64) ** 2) / 2
            latency[row, column] = recording.latency[rows].sum()
    maps = [
        recording.space.layer_choices({g.name: g.choices[c] for g, c in zip(groups, row, strict=True)})
        for row in cheapest_for_each_budget(divergence, latency)
    ]
    return points_of(recording, maps)


def answers(recording: Recording, seeds: int, units: int) -> dict[str, list[float]]:
    """Return, for the fastest map within the limit, how much slower than the best known it is; one a seed."""
    limit = np.log10(limit_of(recording).limit)
    runs = {}
    for name, search in {
        "sensitivity": by_study(SamplerName.SENSITIVITY, limited=True),
        "nsga2, uniform maps first": by_study(SamplerName.NSGA2, limited=True),
        "tpe, uniform maps first": by_study(SamplerName.TPE, limited=True),
    }.items():
        bought = units - (int(np.ceil(recording.probe_units)) if name == "sensitivity" else 0)
        maps = [list(itertools.islice(search(recording, seed, bought), bought)) for seed in range(seeds)]
        runs[name] = [fastest_within(points_of(recording, found), limit) for found in maps]
    best = min(fastest_within(exact_front(recording), limit), *(value for found in runs.values() for value in found))
    return {name: [value / best - 1.0 for value in found] for name, found in runs.items()}


def fastest_within(points: np.ndarray, limit: float) -> float:
    return float(points[points[:, 1] <= limit, 0].min(initial=np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", default=sorted(path.stem for path in FOLDER.glob("*.npz")))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--units", type=int, default=max(MARKS))
    arguments = parser.parse_args()
    marks = [mark for mark in MARKS if mark <= arguments.units]
    results = {}
    for task in arguments.tasks:
        recording = Recording.load(task)
        runs = {
            name: [
                points_of(
                    recording,
                    list(itertools.islice(METHODS[name][0](recording, seed, arguments.units), arguments.units)),
                )
                for seed in range(arguments.seeds)
            ]
            for name in arguments.methods
        }
        found = np.concatenate([points for of_method in runs.values() for points in of_method])
        best = volume(recording, np.concatenate([exact_front(recording), found]))
        results[task] = {
            name: shares(recording, of_method, METHODS[name][1], marks, best) for name, of_method in runs.items()
        }
        print(table(task, recording, results[task], marks))
        predicted = points_of(recording, list(probes_alone(recording, 0, 64)))
        print(f"predicted front, 64 maps of it measured: {100 * volume(recording, predicted) / best:.1f} %")
        for name, slower in answers(recording, arguments.seeds, 40).items():
            print(f"fastest within the limit at 40 units, {name}: {100 * np.mean(slower):+.1f} % of the best known")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "search.json").write_text(json.dumps(results, indent=1))


def shares(
    recording: Recording, runs: list[np.ndarray], probed: bool, marks: list[int], best: float
) -> dict[int, list[float]]:
    """Return mark -> mean share of the best hypervolume and its 95 % interval over the seeds."""
    found = {}
    chance = np.random.default_rng(0)
    for mark in marks:
        bought = max(0, int(mark - (recording.probe_units if probed else 0.0)))
        each = np.array([volume(recording, points[:bought]) / best if bought else 0.0 for points in runs])
        means = chance.choice(each, size=(2000, len(each))).mean(axis=1)
        found[mark] = [float(each.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]
    return found


def table(task: str, recording: Recording, results: dict[str, dict[int, list[float]]], marks: list[int]) -> str:
    lines = [
        f"\n{task}: {len(recording.space.layers)} layers, {recording.space.size:.1g} maps; "
        f"probes cost {recording.probe_units:.1f} units"
    ]
    lines.append(f"{'units':30}" + "".join(f"{mark:>20}" for mark in marks))
    for name, of_method in sorted(results.items(), key=lambda item: -item[1][marks[min(1, len(marks) - 1)]][0]):
        cells = (f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in of_method.values())
        lines.append(f"{name:30}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
