"""Run an export in its own runtime and its own process: ``python -m autotune.exporters.runtime``.

The search's backend runs only full precision here, as the reference for latencies, never the map. The outputs
therefore depend on nothing but the folder and the task.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from autotune.exporters import build_exporter, libraries
from autotune.exporters.base import Source
from autotune.exporters.export import read_source
from autotune.exporters.manifest import MAP, Manifest
from autotune.maps import map_file
from search_spaces.errors import AutotuneError
from workers import quality
from workers.device import environment, memory
from workers.device.threads import timeable
from workers.measurement import LatencySamples
from workers.progress import Report, Stage, Step, Throttled, silent
from workers.task import Task, splits_with_data
from workers.timing import latency
from workers.timing.device_lock import DeviceLock
from workers.timing.estimates import latency_ratio
from workers.timing.latency import Contender

#: Maximum number of latency series, and seconds between them; other processes can disturb a series.
_TRIES, _PAUSE_S = 3, 5.0
#: Keys of latencies in the result, in ms: those of the export, and those of full precision on the reference's backend.
CANDIDATE_MS, REFERENCE_MS = "candidate_ms", "reference_ms"
#: Prefix of the keys of generated outputs that a task judges.
JUDGED = "judged_"


def run(
    folder: Path, result: Path, *, repeats: int, slowest: float, task_file: str | None, report: Report = silent
) -> None:
    """Load the export in ``folder`` and write its outputs and latencies to the safetensors file ``result``.

    Args:
        folder: an export.
        result: file to write: outputs of each split, and latencies unless the format is untimed.
        repeats: timed passes.
        slowest: latency ratio to full precision above which the series is repeated; a series that is clearly above it
            ends early, without repetition.
        task_file: a Python file that registers the task.
        report: gets every step.
    """
    report(Step(stage=Stage.LOADING))
    memory.keep()
    manifest, file = Manifest.read(folder), map_file.read(folder / MAP)
    exporter = build_exporter(manifest.format)
    source = read_source(file, task_file=task_file)
    threads = file.provenance.environment.get("threads", file.measurement.threads)
    torch.set_num_threads(threads or environment.usable_cores())
    with libraries():
        model = exporter.load(folder, manifest.details, source.build_model).eval()
        found = _splits(source.task, model, report)
        if source.untimed(exporter) is None:
            samples = _latency(source, model, repeats, slowest, report)
            found[CANDIDATE_MS] = torch.from_numpy(np.asarray(samples.candidate_ms))
            found[REFERENCE_MS] = torch.from_numpy(np.asarray(samples.reference_ms))
    save_file(found, result)


def _splits(task: Task, model: torch.nn.Module, report: Report) -> dict[str, torch.Tensor]:
    """Return split -> outputs, and the judged outputs where the accuracy is computed on others."""
    found: dict[str, torch.Tensor] = {}
    for split in splits_with_data(task):
        outputs, judged = quality.outputs_and_judged(task, model, split, report)
        found[split] = outputs.contiguous()
        if judged is not outputs:
            found[JUDGED + split] = judged.contiguous()
    return found


def _latency(source: Source, model: torch.nn.Module, repeats: int, slowest: float, report: Report) -> LatencySamples:
    """Return latencies of the export, interleaved with those that the promised ratio is relative to."""
    task, settings = source.task, source.file.measurement
    size = settings.batch_sizes[0]
    batch, reference = task.latency_batch(size), source.reference()
    tries: list[LatencySamples] = []
    while not tries or (len(tries[-1].candidate_ms) >= repeats and _ratio(tries[-1]) > slowest and len(tries) < _TRIES):
        if tries:
            time.sleep(_PAUSE_S)
        with DeviceLock("cpu", report).exclusive(), torch.inference_mode():
            timed = latency.measure(
                Contender(install=_nothing, run=timeable(model, lambda: task.forward(model, batch))),
                Contender(install=_nothing, run=timeable(reference, lambda: task.forward(reference, batch))),
                batch_size=size,
                repeats=repeats,
                warmup_s=settings.warmup_s,
                hopeless=slowest,
                report=report,
            )
        tries.append(timed)
    return min(tries, key=_ratio)


def _ratio(samples: LatencySamples) -> float:
    return latency_ratio(samples).value


def _nothing() -> None:
    """Do nothing: both models are already in place."""


def main() -> None:
    """Run with the arguments of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--slowest", type=float, default=math.inf)
    parser.add_argument("--task-file")
    given = parser.parse_args()
    # Only steps go to the standard output, whatever tasks and libraries print.
    steps = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        run(
            given.folder,
            given.result,
            repeats=given.repeats,
            slowest=given.slowest,
            task_file=given.task_file,
            report=Throttled(lambda step: print(json.dumps(asdict(step)), file=steps, flush=True)),
        )
    except AutotuneError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
