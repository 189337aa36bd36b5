"""Replay searches with a limit on the accuracy drop: how soon they find a feasible map that is faster.

    python benchmarks/search/limits.py [--seeds 5] [--limits 0.03 0.01 0.003] [--wrong 2]

The recordings hold divergences only, so the drop is made up: ``1 - exp(-c * divergence)``, times a factor per map, with
c such that uniform static int8 loses a fifth, as it does on some language models. The probes are off by a factor per
layer and choice, because those of real checkpoints are. As in a job, the latency of a map beyond the limit is not
measured. The answer is the lowest latency of the feasible maps, without noise, after a number of maps of the sampler.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
from replay import FOLDER, Recording, full_precision

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import SamplerName
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.planner.prior import expect
from autotune.search.study import Study
from search_spaces.quantization_map import map_key
from workers.timing.estimates import Figure

MARKS = (1, 2, 5, 10, 20, 40)
#: Standard deviation of the logarithm of a map's drop around the curve.
SCATTER = 0.15
#: Drop of uniform static int8.
UNIFORM_DROP = 0.2
#: A map is faster if its latency ratio is below this.
FASTER = 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limits", type=float, nargs="+", default=[0.03, 0.01, 0.003])
    parser.add_argument("--wrong", type=float, default=2.0, help="typical factor by which probes are off")
    arguments = parser.parse_args()
    print(f"latency ratio of the best feasible map, the median of {arguments.seeds} seeds, after maps of the sampler")
    print("| model | limit | first faster map, worst seed | misses | " + " | ".join(map(str, MARKS)) + " |")
    for name in sorted(path.stem for path in FOLDER.glob("*.npz")):
        recording = Recording.load(name)
        if recording.objectives[0] != "latency_ratio":
            continue
        for limit in arguments.limits:
            found = [list(replayed(recording, limit, seed, arguments.wrong)) for seed in range(arguments.seeds)]
            best = [[min(run[:mark], default=1.0) for mark in MARKS] for run in found]
            first = [next((n for n, ratio in enumerate(run, 1) if ratio < FASTER), math.inf) for run in found]
            misses = np.mean([sum(math.isinf(ratio) for ratio in run) for run in found])
            medians = " | ".join(f"{ratio:.3f}" for ratio in np.minimum(np.median(best, axis=0), 1.0))
            print(f"| {name} | {limit:g} | {max(first):g} | {misses:.1f} of {MARKS[-1]} | {medians} |", flush=True)


def replayed(recording: Recording, limit: float, seed: int, wrong: float) -> Iterator[float]:
    """Yield the latency ratio of each map of the sampler; infinity if it is beyond the limit."""
    limits = (Constraint(metric="accuracy_drop", limit=limit, at_most=True),)
    noise, space = np.random.default_rng(seed), recording.space
    probes = dataclasses.replace(
        recording.probes,
        layers=tuple(
            dataclasses.replace(probe, divergence=probe.divergence * noise.lognormal(0.0, math.log(wrong)))
            for probe in recording.probes.layers
        ),
    )
    prior = expect(space, recording.description, probes)
    study = Study(
        space, recording.objectives, limits, SamplerName.SENSITIVITY, seed=seed, trials=100, slots=1, prior=prior
    )
    study.add(_measured(recording, 0, full_precision(recording), noise, limits))
    number = 1
    for choice in space.uniform_choices():
        proposal = study.propose(space.uniform(choice))
        if proposal is not None:
            study.tell(proposal, _measured(recording, number, proposal.choices, noise, limits))
            number += 1
    for _ in range(MARKS[-1]):
        proposal = study.ask()
        if proposal is None:
            return
        trial = _measured(recording, number, proposal.choices, noise, limits)
        study.tell(proposal, trial)
        number += 1
        kept = trial.state is TrialState.COMPLETE
        yield recording.figures(proposal.choices)["latency_ratio"].value if kept else math.inf


def _drop(recording: Recording, choices: Mapping[str, str]) -> float:
    own = np.random.default_rng(int(map_key(choices)[:12], 16)).lognormal(0.0, SCATTER)
    divergence, uniform = (
        recording.figures(names)["divergence"].value
        for names in (choices, recording.space.layer_choices(recording.space.uniform("int8_static")))
    )
    return (1.0 - (1.0 - UNIFORM_DROP) ** (divergence / uniform)) * float(own)


def _measured(
    recording: Recording,
    number: int,
    choices: Mapping[str, str],
    noise: np.random.Generator,
    limits: tuple[Constraint, ...],
) -> TrialRecord:
    figures = recording.figures(choices, noise)
    drop = _drop(recording, choices)
    figures |= {"accuracy_drop": Figure(value=drop), "accuracy": Figure(value=1.0 - drop)}
    broken = violations(figures, limits)
    state = TrialState.COMPLETE
    if number and any(by > 0 for by in broken.values()):
        state = TrialState.REJECTED
        figures = {name: figure for name, figure in figures.items() if name != "latency_ratio"}
    return TrialRecord(
        job_id="", number=number, kind=TrialKind.SEARCH, label=None, state=state, choices=choices,
        key=map_key(choices), figures=figures, violations=broken, finished_at=now(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
