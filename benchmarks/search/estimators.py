"""Compare sensitivity estimators with the recorded divergence of every layer and choice alone.

    python benchmarks/search/estimators.py [--tasks minilm-lee]

Prints Spearman's rank correlation over all layers and choices, its mean within a choice, and the standard deviation
of the error in decades.
"""

import argparse
import random

import numpy as np
import torch
from record import HERE
from replay import FOLDER, Recording

from search_spaces.choice import FULL_PRECISION
from workers.evaluation.evaluator import Evaluator
from workers.sensitivity.estimate import Sensitivity, _by_gradient, _by_local_error
from workers.setup import WorkerSetup
from workers.tasks import load_task_file

EffectIndex = dict[tuple[str, str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=sorted(path.stem for path in FOLDER.glob("*.npz")))
    load_task_file(str(HERE / "models.py"))
    print(
        "| model | estimator | rank correlation | within a choice | decades off (sd) |\n| --- | --- | --- | --- | --- |"
    )
    for task in parser.parse_args().tasks:
        truth = recorded(Recording.load(task))
        for name, sensitivity in estimated(task, truth).items():
            print(f"| {task} | {name} | {' | '.join(agreement(truth, sensitivity.divergence))} |", flush=True)


def recorded(recording: Recording) -> EffectIndex:
    alone = {
        key: float(np.mean(recording.products[row].astype(np.float64) ** 2) / 2) for key, row in recording.rows.items()
    }
    return {key: value for key, value in alone.items() if key[1] != FULL_PRECISION.name and value > 0}


def estimated(task: str, truth: EffectIndex) -> dict[str, Sensitivity]:
    evaluator = Evaluator(WorkerSetup(task=task))
    prepared, built = evaluator.reference.prepared, evaluator._task
    choices: dict[str, list[str]] = {}
    for layer, choice in truth:
        choices.setdefault(layer, []).append(choice)
    batches = list(built.calibration())
    batches = random.Random(0).sample(batches, len(batches))
    prepared.reset()
    return {
        "gradient sketch": _by_gradient(built, prepared, choices, batches, torch.Generator().manual_seed(0)),
        "local error": _by_local_error(built, prepared, choices, batches),
    }


def agreement(truth: EffectIndex, found: EffectIndex) -> list[str]:
    true, guessed = (np.array([values[key] for key in truth]) for values in (truth, found))
    names = np.array([choice for _, choice in truth])
    within = [rank_correlation(true[names == name], guessed[names == name]) for name in dict.fromkeys(names)]
    apart = np.log10(np.maximum(guessed, 1e-30) / true)
    return [f"{value:.3f}" for value in (rank_correlation(true, guessed), np.mean(within), np.std(apart))]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


if __name__ == "__main__":
    main()
