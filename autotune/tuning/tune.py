"""``autotune.tune``: one call that searches, and returns the maps to choose from."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from os import PathLike
from typing import Any

import torch
from torch import nn

from autotune.client.actions import submit
from autotune.console.output import say
from autotune.console.progress import ConsoleListener
from autotune.jobs.spec import JobSpec
from autotune.search.run import run_job
from autotune.store.open import default_url, open_store
from autotune.tuning.checkpoint import checkpoint_job, data_of
from autotune.tuning.inputs import Inputs
from autotune.tuning.job import Settings, job_of
from autotune.tuning.live import live_task
from autotune.tuning.metric import Metric
from autotune.tuning.result import Result
from workers.device.threads import same_threads
from workers.task import OutputKind
from workers.tasks.live import LIVE, hold


def tune(
    model: nn.Module | str | PathLike[str],
    batches: Any = None,
    *,
    metric: Metric | None = None,
    labels: Any = None,
    limits: Mapping[str, Any] | None = None,
    budget: str | float | None = "5 min",
    held_out: Any = None,
    held_out_labels: Any = None,
    output_kind: OutputKind | str = OutputKind.LOGITS,
    output: Callable[[Any], torch.Tensor] | None = None,
    samples: int | None = None,
    backend: str | Sequence[str] | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    ray_address: str | None = None,
    name: str | None = None,
    database: str | None = None,
    job: Mapping[str, Any] | None = None,
) -> Result:
    """Search the precision of every layer of a model within limits, and return the maps found.

    The search runs in this process and shows its progress. Ctrl-C ends it; the result then holds what was measured.
    The job is recorded in the database, where the dashboard and the command line see it. The model stays as it is.

    Args:
        model: a model in full precision; or a checkpoint's folder, GGUF file or name on the hub, whose task is known by
            its architecture.
        batches: inputs that production could send: a batch, or an iterable of batches such as a list or a DataLoader.
            A batch is a tensor, a mapping of keyword arguments or a tuple of positional arguments. For a checkpoint,
            the path of its data, or None for those of its task.
        metric: returns the accuracy, higher is better: a function of ``(outputs, labels)`` of all samples, or, without
            labels, a function of one argument that judges a model on data of its own. None computes the share of right
            decisions with labels, and the agreement with full precision without.
        labels: labels of all samples in order, or one item per batch. None takes the last part of every batch, or its
            key ``labels``, if the metric needs labels.
        limits: metric of a job file -> limit, such as ``{"accuracy_drop": "1%", "weight_memory_mib": "60MiB"}``.
        budget: time of the search, such as ``"5 min"`` or seconds; None for no time limit.
        held_out: batches that only check the chosen maps at the end. None splits a quarter off ``batches``.
        held_out_labels: labels of the held-out samples, like ``labels``.
        output_kind: ``"logits"``, or ``"embedding"`` for vectors that are compared by angle.
        output: extracts the outputs, shape ``(samples, ..., features)``, from the model's result; None takes the first
            tensor that is no scalar.
        samples: most samples to use; None takes as many as the budget allows, 2,048 at most.
        backend: runtimes to search, such as ``["cpu", "openvino"]``, or ``"all"`` that are installed; everything is
            compared with full precision on the first one. None takes PyTorch's kernels.
        batch_size: samples per timed pass.
        workers: number of Ray workers that measure; None measures in this process.
        ray_address: address of a Ray cluster for the workers; None starts a private one on this machine.
        name: name of the job; None takes that of the model's class.
        database: URL of the database; None is the usual one.
        job: further keys of a job file, such as ``{"search": {"trials": 30}}``; they win over the other arguments.

    Raises:
        TaskError: if model, data and metric do not fit each other.
        JobSpecError: if a limit or another key of the job is wrong.
        AutotuneError: if the search fails.
    """
    settings = Settings(
        limits=limits or {},
        budget=budget,
        backend=backend,
        batch_size=batch_size,
        workers=workers,
        ray_address=ray_address,
        job=job or {},
    )
    inputs = Inputs(
        batches=batches,
        metric=metric,
        labels=labels,
        held_out=held_out,
        held_out_labels=held_out_labels,
        output_kind=OutputKind(output_kind),
        output=output,
        samples=samples,
    )
    database = database or default_url()
    if not isinstance(model, nn.Module):
        return run(checkpoint_job(os.fspath(model), data_of(inputs), settings, name=name), database)
    label = type(model).__name__
    spec = job_of(name or label, {"name": LIVE}, settings)  # refuses wrong settings before the model runs
    task, told = live_task(model, inputs, spec.search.time_limit_s)
    return run(job_of(name or label, {"name": LIVE, "parameters": hold(task, label)}, settings), database, tuple(told))


def run(spec: JobSpec, database: str, told: tuple[str, ...] = ()) -> Result:
    """Run a job in this process and return its result; ``told`` are sentences about the use of the data.

    Raises:
        AutotuneError: if the search fails.
        KeyboardInterrupt: if it is interrupted before full precision was measured.
    """
    with same_threads(), closing(open_store(database)) as store:
        record = submit(store, spec, served=False)
        for sentence in (*told, f"Job {record.id} ({record.name}) is recorded in {database}."):
            say(sentence)
        try:
            with ConsoleListener(spec.objectives[0]) as listener:
                run_job(store, record.id, listener=listener)
        except KeyboardInterrupt:
            if not store.trials(record.id):
                raise
            say("Stopped. The result holds every finished trial.")
        return Result.read(store, record.id, database, told)
