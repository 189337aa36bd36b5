"""Measure what is done without a search, beside what a job found: each interleaved with full precision, in one process.

    python -m benchmarks.models.by_hand DATABASE JOB [--task-file FILE]

Uniform int8 maps, the same with the first and the last layer in full precision, PyTorch's default recipe
(`quantize_dynamic` on all linear layers) and the fastest map of the job within its limits. Prints one JSON object per
line: name, latency ratio of the job's first objective, accuracy drop, divergence, MiB of weights.
"""

import argparse
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from autotune.client.actions import find_job
from autotune.jobs.records import JobRecord
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS
from autotune.metrics.from_measurement import MIB
from autotune.store.open import open_store
from benchmarks.models.table import fastest, naive_mix
from workers import quality
from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Split, Workload
from workers.model.full_precision import full_precision_model
from workers.setup import ModelDescription
from workers.task import Task, workloads
from workers.tasks import build_task
from workers.timing import latency
from workers.timing.device_lock import DeviceLock
from workers.timing.estimates import latency_ratio
from workers.timing.latency import Contender

INT8 = ("int8_static", "int8_dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one map or recipe."""

    name: str
    #: Median latency relative to full precision.
    ratio: float
    #: Loss of accuracy relative to full precision's.
    accuracy_drop: float
    divergence: float
    weight_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("job")
    parser.add_argument("--task-file")
    given = parser.parse_args()
    store = open_store(given.database, read_only=True)
    job = find_job(store, given.job)
    best = fastest(store.trials(job.id), job.spec)
    store.close()
    assert job.description is not None
    maps = {} if best is None else {"found by the search": dict(best.choices)}
    maps |= maps_by_hand(job.description)
    for measured in measured_maps(job, maps, given.task_file):
        print(json.dumps(asdict(measured)), flush=True)
    print(json.dumps(asdict(default_recipe(job.spec))), flush=True)


def maps_by_hand(description: ModelDescription) -> dict[str, dict[str, str]]:
    """Return name -> map, for every map that needs no search."""
    layers = [layer.name for layer in description.layers]
    computing = [layer.name for layer in description.layers if not layer.kind.looks_up]
    maps = {}
    for choice in INT8:
        refused = {layer for layer in layers if choice in description.refusals[layer]}
        maps[f"uniform {choice}"] = naive_mix(layers, refused, choice)
        maps[f"{choice}, first and last fp32"] = naive_mix(layers, refused | {computing[0], computing[-1]}, choice)
    return maps


def measured_maps(job: JobRecord, maps: Mapping[str, Mapping[str, str]], task_file: str | None) -> Iterator[Measured]:
    """Yield the figures of maps by one evaluator, which has the job's ranges and kernels."""
    assert job.description is not None
    evaluator = Evaluator(job.spec.worker_setup(task_file).continued(job.description))
    full = evaluator.quality.reference_accuracy(Split.EVALUATION)
    for number, (name, choices) in enumerate(maps.items()):
        found = evaluator.measure(Candidate(number=number, choices=choices))
        samples = next(timed for timed in found.latency if timed.workload is workload_of(job.spec))
        yield Measured(
            name=name,
            ratio=latency_ratio(samples).value,
            accuracy_drop=1.0 - found.accuracy / full,
            divergence=found.divergence,
            weight_mib=found.weight_bytes / MIB,
        )


def default_recipe(spec: JobSpec) -> Measured:
    """Return the figures of PyTorch's ``quantize_dynamic`` on all linear layers, against the model as it is."""
    task = build_task(spec.task.name, spec.task.parameters)
    size = spec.measurement.batch_sizes[0]
    timed = workloads(task, size)[workload_of(spec)]
    model = full_precision_model(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, and still what most guides show
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    def contender(some: nn.Module) -> Contender:
        state = timed.prepare(some)
        return Contender(install=lambda: None, run=lambda: timed.run(some, state))

    with DeviceLock("cpu").exclusive(), torch.inference_mode():
        samples = latency.measure(
            contender(quantized),
            contender(model),
            batch_size=size,
            repeats=spec.measurement.repeats,
            warmup_s=spec.measurement.warmup_s,
        )
    (full_accuracy, full), (accuracy, outputs) = judged(task, model), judged(task, quantized)
    return Measured(
        name="quantize_dynamic",
        ratio=latency_ratio(samples).value,
        accuracy_drop=1.0 - accuracy / full_accuracy,
        divergence=float(quality.divergence(outputs, full, task.output_kind).mean()),
        weight_mib=saved_bytes(quantized) / MIB,
    )


def judged(task: Task, model: nn.Module) -> tuple[float, torch.Tensor]:
    """Return a model's accuracy on the evaluation split, and its outputs."""
    outputs, judged = quality.outputs_and_judged(task, model, Split.EVALUATION)
    return quality.number(task.accuracy(judged, Split.EVALUATION)), outputs


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's saved state; PyTorch does not count its packed weights otherwise."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getbuffer().nbytes


def workload_of(spec: JobSpec) -> Workload:
    """Return the workload of a job's first objective."""
    return METRICS[spec.objectives[0]].workload


if __name__ == "__main__":
    main()
