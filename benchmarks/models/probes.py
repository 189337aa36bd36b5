"""Compare the probes of published checkpoints with the divergence of single layers, measured one at a time.

    python -m benchmarks.models.probes [minilm gemma whisper-tiny] [--cache FOLDER] [--pairs N] [--seconds S ...]

Needs the checkpoints, which `python -m benchmarks.models.fetch` fetches. Layers and choices are a random sample of
those that the model's job file searches. Each is measured alone on the evaluation split. Sensitivities are estimated on
the calibration data, once for each limit in seconds: 36 s is what a job of five minutes gives them after two fifths of
its time, and with `inf` they take all the samples they want. Prints Spearman's rank correlation, the standard deviation
of the error in decades, and the cost of the sensitivities in full evaluations of a map. Latencies are not measured.
"""

import argparse
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from autotune.jobs.space import space_of
from autotune.jobs.spec import JobSpec
from benchmarks.models.fetch import CACHE, MODELS
from benchmarks.models.table import markdown
from search_spaces.choice import FULL_PRECISION
from search_spaces.space import SearchSpace
from workers.evaluation.evaluator import Evaluator
from workers.task import Split

HERE = Path(__file__).parent
HEADINGS = ("model", "pairs", "rank correlation", "decades off (sd)", "samples", "seconds", "full evaluations")

#: (layer, choice) -> divergence of the model in which this layer alone takes the choice.
Divergences = Mapping[tuple[str, str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of checkpoints and data")
    parser.add_argument("--pairs", type=int, default=30, help="layers with a choice that are measured")
    parser.add_argument("--seconds", type=float, nargs="+", default=[36.0], help="limits of the sensitivities")
    given = parser.parse_args()
    os.environ["AUTOTUNE_DATA"] = str(given.cache.resolve())
    models = given.models or ("minilm", "gemma", "whisper-tiny")
    print(markdown(HEADINGS, (row for model in models for row in compared(model, given.pairs, given.seconds))))


def compared(model: str, count: int, limits_s: list[float]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a model for each limit in seconds."""
    spec = JobSpec.load(HERE / f"{model}.yaml")
    evaluator = Evaluator(spec.worker_setup())
    pairs = sample(space_of(spec, evaluator.description), count)
    evaluator.quality.of({}, Split.EVALUATION)  # so that the first pair is not charged with the reference
    start = time.monotonic()
    true = {(layer, choice): evaluator.quality.of({layer: choice}, Split.EVALUATION)[1] for layer, choice in pairs}
    evaluation_s = (time.monotonic() - start) / len(pairs)
    for limit_s in limits_s:
        start = time.monotonic()
        found = evaluator.sensitivity(limit_s)
        seconds = time.monotonic() - start
        yield (
            model,
            str(len(pairs)),
            *agreement(true, found.divergence),
            f"{found.samples}{' (cut)' if found.cut else ''}",
            f"{seconds:.0f}",
            f"{seconds / evaluation_s:.1f}",
        )


def sample(space: SearchSpace, count: int) -> list[tuple[str, str]]:
    """Return so many random layers with a choice that they may take, or all if there are fewer."""
    pairs = [
        (layer, choice)
        for group in space.groups
        for layer in group.layers
        for choice in group.choices
        if choice != FULL_PRECISION.name
    ]
    return random.Random(0).sample(pairs, min(count, len(pairs)))


def agreement(true: Divergences, predicted: Divergences) -> tuple[str, str]:
    """Return the rank correlation and the standard deviation of the error in decades."""
    measured, guessed = (np.array([values[pair] for pair in true]) for values in (true, predicted))
    decades = np.log10(np.maximum(guessed, 1e-30) / np.maximum(measured, 1e-30))
    correlation = np.corrcoef(ranks(measured), ranks(guessed))[0, 1]
    return f"{correlation:.3f}", f"{np.std(decades):.2f}"


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 0; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2.0)[inverse]


if __name__ == "__main__":
    main()
