"""Peak memory of a worker on published checkpoints, stage by stage, and of a plain process that evaluates the model.

    python -m benchmarks.models.peaks [minilm gemma efficientnet whisper-tiny] [--cache FOLDER] [--seconds S]

Needs Linux, and the checkpoints, which `python -m benchmarks.models.fetch` fetches. Both run in a process of their own,
in one thread. The plain process builds the model and evaluates it once in full precision. The worker prepares the
model's job, measures the quality of uniform and random maps, and probes the sensitivities. Latencies are not measured.
"""

import argparse
import dataclasses
import multiprocessing
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from autotune.jobs.space import space_of
from autotune.jobs.spec import JobSpec
from autotune.metrics.from_measurement import MIB
from benchmarks.models.fetch import CACHE, MODELS
from benchmarks.models.run import TASK_FILES
from benchmarks.models.table import markdown
from search_spaces.choice import FULL_PRECISION
from workers import quality
from workers.evaluation.evaluator import Evaluator
from workers.setup import WorkerSetup
from workers.task import Split
from workers.tasks import build_task, load_task_file

HERE = Path(__file__).parent
HEADINGS = ("stage", "peak in MiB", "of the plain process")

#: Stage -> peak of resident bytes in it.
Peaks = dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of checkpoints and data")
    parser.add_argument("--seconds", type=float, default=36.0, help="limit of the sensitivities")
    given = parser.parse_args()
    os.environ["AUTOTUNE_DATA"] = str(given.cache.resolve())
    for model in given.models or MODELS:
        plain = in_new_process(plain_peaks, model)
        most = max(plain.values())
        peaks = {f"plain: {stage}": peak for stage, peak in plain.items()}
        peaks |= in_new_process(worker_peaks, model, given.seconds)
        rows = [(stage, f"{peak / MIB:.0f}", f"{peak / most:.2f}") for stage, peak in peaks.items()]
        print(f"## {model}\n\n{markdown(HEADINGS, rows)}\n", flush=True)


def in_new_process(run: Callable[..., Peaks], *arguments: Any) -> Peaks:
    """Return the result of a function of this module, called in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def plain_peaks(model: str) -> Peaks:
    """Return the peaks of a process without this project's measurements."""
    setup = setup_of(model)
    if setup.task_file is not None:
        load_task_file(setup.task_file)
    torch.set_num_threads(setup.measurement.threads)
    task = build_task(setup.task, setup.task_parameters)
    peaks: Peaks = {}
    built = staged(peaks, "model built", task.build_model)
    staged(peaks, "evaluated", lambda: quality.outputs_and_judged(task, built, Split.EVALUATION))
    return peaks


def worker_peaks(model: str, budget_s: float) -> Peaks:
    """Return the peaks of a worker; ``budget_s`` limits the sensitivities."""
    peaks: Peaks = {}
    evaluator = staged(peaks, "worker ready", lambda: Evaluator(setup_of(model)))
    space = space_of(spec_of(model), evaluator.description)
    draw = random.Random(0)

    def measure(stage: str, assignment: Mapping[str, str]) -> None:
        choices = space.layer_choices(assignment)
        staged(peaks, stage, lambda: evaluator.quality.of(choices, Split.EVALUATION))

    for choice in (FULL_PRECISION.name, "bf16", "int8_static"):
        measure(f"uniform {choice}", space.uniform(choice))
    staged(peaks, "sensitivities", lambda: evaluator.sensitivity(budget_s))
    for number in (1, 2):
        measure(f"random map {number}", {group.name: draw.choice(group.choices) for group in space.groups})
    held_out = space.layer_choices(space.uniform("int8_static"))
    staged(peaks, "held-out data", lambda: evaluator.quality.held_out_accuracies(held_out))
    return peaks


def staged(peaks: Peaks, stage: str, run: Callable[[], Any]) -> Any:
    """Return what ``run`` returns, and add its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    result = run()
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks[stage] = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return result


def spec_of(model: str) -> JobSpec:
    return JobSpec.load(HERE / f"{model}.yaml")


def setup_of(model: str) -> WorkerSetup:
    file = TASK_FILES.get(model)
    setup = spec_of(model).worker_setup(None if file is None else str(file))
    return dataclasses.replace(setup, measurement=dataclasses.replace(setup.measurement, threads=1))


if __name__ == "__main__":
    main()
