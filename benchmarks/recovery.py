"""Recover uniform maps of several models, and tabulate what comes back in how many seconds.

    python -m benchmarks.recovery [minilm digits-vit efficientnet whisper-tiny gemma] [--seeds 3] [--cache FOLDER]

Needs what `benchmarks.models.run` needs for the models named. All maps of a model are recovered in one process on all
cores; divergences before and after are of the same evaluation data, which recovery never sees. Markdown on standard
output.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.jobs.spec import JobSpec
from benchmarks.models.fetch import CACHE, MODELS
from benchmarks.models.run import HERE, TASK_FILES
from search_spaces.choice import FULL_PRECISION
from workers.evaluation.evaluator import Evaluator
from workers.recovered import RecoverySettings
from workers.setup import WorkerSetup
from workers.task import Split

#: Choices that are recovered, and for comparison one that is only rounded more carefully.
RECOVERED = ("int4_weight_only", "int8_static", "int8_static_smooth", "int8_dynamic", "int8_dynamic_per_token")
COMPARED = ("int4_weight_only_gptq",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One map, before or after recovery."""

    map: str
    seconds: float | None
    accuracy: float
    divergence: float
    shifted: float | None
    note: str = ""

    def cells(self) -> list[str]:
        """Return the texts of the row."""
        seconds = "" if self.seconds is None else f"{self.seconds:.0f}"
        shifted = "" if self.shifted is None else f"{self.shifted:.2e}"
        return [self.map, seconds, f"{self.divergence:.2e}", shifted, f"{self.accuracy:.4f}", self.note]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["minilm"], metavar="MODEL")
    parser.add_argument("--choices", nargs="*", default=[*RECOVERED, *COMPARED], metavar="CHOICE")
    parser.add_argument("--seeds", type=int, default=3, help="recoveries of each map")
    parser.add_argument("--epochs", type=int, default=RecoverySettings().epochs, help="passes over the data")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of checkpoints and data")
    given = parser.parse_args()
    os.environ["AUTOTUNE_DATA"] = str(given.cache.resolve())
    for model in given.models:
        if model in MODELS:
            MODELS[model](given.cache)
        print(f"## {model}\n\n| map | s | divergence | shifted | accuracy | |\n| --- | --- | --- | --- | --- | --- |")
        for row in rows(setup_of(model, given.choices), given.choices, given.seeds, given.epochs):
            print(f"| {' | '.join(row.cells())} |", flush=True)
        print()


def setup_of(model: str, choices: Sequence[str]) -> WorkerSetup:
    """Return the setup for a model: that of its job file, or its task's defaults."""
    path = HERE / f"{model}.yaml"
    document = JobSpec.load(path).dump() if path.exists() else {"name": model, "task": {"name": model}}
    document |= {"backend": "cpu", "search": {"choices": [FULL_PRECISION.name, *choices]}}
    file = TASK_FILES.get(model)
    return JobSpec.parse(document).worker_setup(None if file is None else str(file))


def rows(setup: WorkerSetup, choices: Sequence[str], seeds: int, epochs: int) -> Iterator[Row]:
    """Yield full precision, then every uniform map as it is and recovered."""
    evaluator = Evaluator(setup)
    legal = evaluator.reference.legal()
    yield measured(evaluator, {}, "fp32")
    for choice in choices:
        names = {layer: choice if choice in known else FULL_PRECISION.name for layer, known in legal.items()}
        taking = sum(name == choice for name in names.values())
        if not taking:
            print(f"{choice}: no layer takes it here", file=sys.stderr)
            continue
        yield measured(evaluator, names, f"{choice}, {taking} of {len(names)} layers")
        for seed in range(seeds if choice in RECOVERED else 0):
            yield recovered(evaluator, names, RecoverySettings(epochs=epochs, seed=seed))


def measured(evaluator: Evaluator, names: Mapping[str, str], title: str) -> Row:
    """Return the quality of a map as it is."""
    accuracy, divergence = evaluator.quality.of(names, Split.EVALUATION)
    has_shifted = evaluator.description.calibration.clipped is not None
    shifted = evaluator.quality.of(names, Split.SHIFTED)[1] if has_shifted else None
    return Row(map=title, seconds=None, accuracy=accuracy, divergence=divergence, shifted=shifted)


def recovered(evaluator: Evaluator, names: Mapping[str, str], settings: RecoverySettings) -> Row:
    """Return the quality of a map after recovery."""
    found = evaluator.recover(names, "", settings)
    title, kept = f"recovered, seed {settings.seed}", len(found.report.kept)
    if found.measurement is None:
        row = measured(evaluator, names, title)
        return replace(row, seconds=found.report.seconds, note="kept: " + next(iter(found.report.kept.values()), ""))
    quality = found.measurement
    return Row(
        map=title,
        seconds=found.report.seconds,
        accuracy=quality.accuracy,
        divergence=quality.divergence,
        shifted=None if quality.shifted is None else quality.shifted[1],
        note=f"{kept} blocks kept" if kept else "",
    )


if __name__ == "__main__":
    main()
