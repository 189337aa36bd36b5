"""Compare samplers on recorded models with equal budgets, probes included.

    python benchmarks/search/compare.py [--seeds 5] [--tasks minilm-lee digits-vit] [--quick]

A unit is one full evaluation of a map. The result is the hypervolume of the measured maps, without noise,
as a share of the best known; its interval is a bootstrap over the seeds.
"""

import argparse
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from replay import FOLDER, Recording, full_precision

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import SamplerName
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.metrics.objectives import Objectives
from autotune.metrics.pareto import hypervolume
from autotune.planner.knapsack import Maps, cheapest_for_each_budget, with_few_changes
from autotune.planner.next_map import Planner
from autotune.planner.prior import expect
from autotune.search.study import Study
from search_spaces.choice import FULL_PRECISION, Precision, choice_named
from search_spaces.quantization_map import map_key
from workers.timing.estimates import Figure

MARKS = (20, 40, 80, 150, 300)
RESULTS = Path(__file__).parents[1] / "results" / "search.json"
TABLES = Path(__file__).parent / "results.md"
GP, TPE = "gp, uniform maps first", "tpe, uniform maps first"
#: These samplers take seconds per ask with many groups or trials, so their units are limited there.
MANY_GROUPS = 64
PATIENCE = {GP: (40, 0), TPE: (max(MARKS), 80)}
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
    """Return the search of the product: full precision, uniform maps, then the maps of the sampler."""

    def search(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
        noise, space = np.random.default_rng(seed), recording.space
        probed = name is SamplerName.SENSITIVITY
        prior = expect(space, recording.description, recording.probes if probed else None)
        limits = (limit_of(recording),) if limited else ()
        study = Study(space, recording.objectives, limits, name, seed=seed, trials=units, slots=1, prior=prior)
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
            trial = measured(recording, len(trials), proposal.choices, noise, limits)
            study.tell(proposal, trial)
            trials.append(trial)
            yield trial.choices

    return search


def nsga3_cold(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Search with Optuna's NSGA-III, which is made for four or more objectives, without uniform maps first."""
    noise, groups = np.random.default_rng(seed), recording.space.free_groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.NSGAIIISampler(seed=seed, population_size=min(50, max(12, units // 6)))
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * 2)
    distributions = {g.name: optuna.distributions.CategoricalDistribution(g.choices) for g in groups}
    for _ in range(units):
        trial = study.ask(distributions)
        choices = recording.space.layer_choices(trial.params)
        study.tell(trial, Objectives.named(recording.objectives).values(recording.figures(choices, noise)))
        yield choices


def predicted_front(recording: Recording, count: int) -> Iterator[list[str]]:
    """Yield the choices of ``count`` maps evenly spread along the front that the probes predict."""
    maps = maps_along_front(recording)
    chosen = maps[np.unique(np.linspace(0, len(maps) - 1, count).round().astype(int))]
    for row in chosen:
        yield [group.choices[choice] for group, choice in zip(recording.space.free_groups, row, strict=True)]


def maps_along_front(recording: Recording) -> Maps:
    groups = recording.space.free_groups
    prior = expect(recording.space, recording.description, recording.probes)
    planner = Planner(prior, [g.choices for g in groups], Objectives.named(recording.objectives), (), seed=0)
    return planner.predicted_front()


def probes_alone(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Measure the front that the probes predict, without learning from it."""
    groups = [group.name for group in recording.space.free_groups]
    for names in predicted_front(recording, units):
        yield recording.space.layer_choices(dict(zip(groups, names, strict=True)))


def greedy_fallback(recording: Recording, seed: int, units: int) -> Iterator[Mapping[str, str]]:
    """Quantize all layers to the fastest int8, probe one layer at a time, and change the worst to bf16 one by one."""
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
    prior = expect(recording.space, recording.description, recording.probes)
    bits = np.full(prior.divergence.shape, np.inf)
    for row, group in enumerate(groups):
        for column, choice in enumerate(group.choices):
            bits[row, column] = choice_named(choice).precision.bits * len(group.layers)
    maps = cheapest_for_each_budget(prior.divergence, bits)
    for row in maps[np.unique(np.linspace(0, len(maps) - 1, units).round().astype(int))]:
        yield recording.space.layer_choices({g.name: g.choices[c] for g, c in zip(groups, row, strict=True)})


def _filled(recording: Recording, choice: str) -> dict[str, str]:
    return recording.space.layer_choices(recording.space.uniform(choice))


#: Name -> search, and whether it starts from probes, whose cost then counts.
METHODS: dict[str, tuple[Search, bool]] = {
    "sensitivity": (by_study(SamplerName.SENSITIVITY), True),
    "probes, no learning": (probes_alone, True),
    "effective-bits knapsack": (effective_bits, True),
    "nsga2, from the probes' front": (by_study(SamplerName.NSGA2, start="probes"), True),
    "nsga2, uniform maps first": (by_study(SamplerName.NSGA2), False),
    "nsga2, cold": (by_study(SamplerName.NSGA2, start="cold"), False),
    "nsga3, cold": (nsga3_cold, False),
    TPE: (by_study(SamplerName.TPE), False),
    GP: (by_study(SamplerName.GP), False),
    "random, uniform maps first": (by_study(SamplerName.RANDOM), False),
    "greedy fallback": (greedy_fallback, False),
}


def points_of(recording: Recording, maps: list[Mapping[str, str]]) -> np.ndarray:
    return Objectives.named(recording.objectives).points([recording.figures(choices) for choices in maps])


def volume(recording: Recording, points: np.ndarray) -> float:
    """Return the hypervolume in the normalisation of the product."""
    objectives, full = Objectives.named(recording.objectives), _full_figures(recording)
    return hypervolume(objectives.normalise(points, full), objectives.reference_point(full))


def _full_figures(recording: Recording) -> dict[str, Figure]:
    return recording.figures(full_precision(recording))


def exact_front(recording: Recording) -> np.ndarray:
    """Return the points of the knapsack on the true costs of every layer alone, and of maps with few changes."""
    groups = recording.space.free_groups
    shape = (len(groups), max(len(group.choices) for group in groups))
    divergence, latency, memory = (np.full(shape, np.inf) for _ in range(3))
    kinds = np.zeros(shape, dtype=np.intp)
    for row, group in enumerate(groups):
        for column, choice in enumerate(group.choices):
            rows = [recording.rows[layer, choice] for layer in group.layers]
            memory[row, column] = sum(recording.description.layer_bytes[layer][choice] for layer in group.layers)
            divergence[row, column] = np.mean(recording.products[rows].sum(axis=0, dtype=np.float64) ** 2) / 2
            latency[row, column] = recording.latency[rows].sum()
            kinds[row, column] = list(Precision).index(choice_named(choice).precision)
    legal = np.isfinite(latency)
    speed = np.ptp(divergence[legal]) / np.ptp(latency[legal]) * np.geomspace(1e-5, 1e4, 150)
    weighed = divergence + speed[:, None, None] * np.where(legal, latency, 0.0)
    found = [cheapest_for_each_budget(divergence, latency), cheapest_for_each_budget(divergence, memory)]
    found += [
        with_few_changes(weighed, kinds, price * speed) for price in recording.mixing * np.geomspace(1e-3, 0.3, 6)
    ]
    maps = [
        recording.space.layer_choices({g.name: g.choices[c] for g, c in zip(groups, row, strict=True)})
        for row in np.unique(np.concatenate(found), axis=0)
    ]
    return points_of(recording, maps)


def answers(recording: Recording, seeds: int, units: int) -> dict[str, list[float]]:
    """Return per seed by how much the fastest map within the limit is slower than the best known."""
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
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for task in arguments.tasks:
        marks, text = compare(Recording.load(task), task, arguments.methods, arguments.seeds)
        print(text, flush=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[task] = {"marks": marks, "text": text}
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True))
        texts = [results[name]["text"] for name in sorted(results)]
        TABLES.write_text(HEAD.format(seeds=arguments.seeds) + "\n".join(texts))


HEAD = """# Samplers compared

Written by `python benchmarks/search/compare.py`; [how the search works](../../docs/search.md#how-it-compares) says
what the numbers are. {seeds} seeds; hypervolume in percent of the best known, with its 95 % bootstrap interval.

![Hypervolume over units for each sampler](../../docs/images/search.svg)
"""


def compare(
    recording: Recording, task: str, methods: Sequence[str], seeds: int
) -> tuple[dict[str, dict[int, list[float]]], str]:
    """Return method -> mark -> share of the best hypervolume with its interval, and all figures as text."""
    able = [name for name in methods if most_units(recording, name)]
    runs = {name: [run(recording, name, seed) for seed in range(seeds)] for name in able}
    found = np.concatenate([points for of_method in runs.values() for points in of_method])
    best = volume(recording, np.concatenate([exact_front(recording), found]))
    results = {name: shares(recording, of_method, name, best) for name, of_method in runs.items()}
    predicted = points_of(recording, list(probes_alone(recording, 0, 64)))
    lines = [
        f"\n## {task}\n",
        f"{len(recording.space.layers)} layers, {recording.space.size:.1g} maps; "
        f"objectives {' and '.join(recording.objectives)}; recorded on {recording.hardware}. "
        f"Probes cost {recording.probe_units:.1f} units. Of the front they predict, 64 maps have "
        f"{100 * volume(recording, predicted) / best:.1f} % of the best hypervolume.\n",
        table(results),
        f"\nBest {recording.objectives[0]} within a limit on the loss after 40 units, worse than the best known by: "
        + "; ".join(f"{name} {100 * np.mean(slower):.1f} %" for name, slower in answers(recording, seeds, 40).items())
        + ".",
    ]
    return results, "\n".join(lines) + "\n"


def most_units(recording: Recording, name: str) -> int:
    """Return the most units of a method; 0 if it cannot run."""
    with_few, with_many = PATIENCE.get(name, (max(MARKS), max(MARKS)))
    return with_few if len(recording.space.free_groups) <= MANY_GROUPS else with_many


def run(recording: Recording, name: str, seed: int) -> np.ndarray:
    units = most_units(recording, name)
    return points_of(recording, list(itertools.islice(METHODS[name][0](recording, seed, units), units)))


def shares(recording: Recording, runs: list[np.ndarray], name: str, best: float) -> dict[int, list[float]]:
    """Return mark -> mean share of the best hypervolume and its 95 % interval over the seeds."""
    found = {}
    chance = np.random.default_rng(0)
    for mark in (mark for mark in MARKS if mark <= most_units(recording, name)):
        bought = max(0, int(mark - (recording.probe_units if METHODS[name][1] else 0.0)))
        each = np.array([volume(recording, points[:bought]) / best if bought else 0.0 for points in runs])
        means = chance.choice(each, size=(2000, len(each))).mean(axis=1)
        found[mark] = [float(each.mean()), *map(float, np.percentile(means, [2.5, 97.5]))]
    return found


def table(results: dict[str, dict[int, list[float]]]) -> str:
    lines = ["| units | " + " | ".join(map(str, MARKS)) + " |", "| --- |" + " --- |" * len(MARKS)]
    for name, of_method in sorted(results.items(), key=lambda item: -item[1][40][0]):
        cells = [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in of_method.values()]
        lines.append(f"| {name} | " + " | ".join(cells + ["-"] * (len(MARKS) - len(cells))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
