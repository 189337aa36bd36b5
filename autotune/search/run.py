"""Runs one job from its claim to its end."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from autotune.errors import ConflictError, JobSpecError, LeaseLostError, Stopped
from autotune.jobs import lifecycle
from autotune.jobs.backends import competing, left_out
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.progress import Listener, Silent
from autotune.jobs.records import JobRecord, JobState, Order
from autotune.jobs.recovery import to_recover
from autotune.jobs.space import space_of
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import event
from autotune.metrics.catalog import METRICS, metric_of
from autotune.search import process_identity
from autotune.search.backend_search import searches_of
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.loop import Search
from autotune.search.probing import obtain_probes
from autotune.search.recovery import Recovery
from autotune.search.stages import Stages
from autotune.store.base import DriverStore
from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError, SpaceError
from workers.errors import ClusterLostError
from workers.measurement import Split
from workers.pools.build import build_pool
from workers.recovered import RecoverySettings
from workers.setup import ModelDescription, PoolSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """Options of a driver that job files must not set: the task file, and the address of the cluster."""

    #: A Python file that registers the job's task; workers execute it.
    task_file: str | None = None
    #: Address of the cluster that all jobs share; None means the address in the job file.
    ray_address: str | None = None


def run_job(
    store: DriverStore, job_id: str, *, listener: Listener | None = None, task_file: str | None = None
) -> JobRecord:
    """Search in this process until the job's budget is used up, and return the finished job.

    A job that ran before continues where it stopped: a new study learns its recorded trials.

    Args:
        store: where the job and its results are recorded.
        job_id: the job.
        listener: is notified of the progress; None for no listener.
        task_file: a Python file that registers the job's task; workers execute it.

    Raises:
        ConflictError: if another process drives the job, its task now builds another model, or the
            hardware is of another kind.
        OrderedError: if the user paused or cancelled the job meanwhile.
        AutotuneError: if the task, the backend or the workers fail.
    """
    before = store.job(job_id)
    if before.driver and process_identity.is_gone(before.driver):
        store.change_job(job_id, lifecycle.released(before.epoch, f"Driver {before.driver} was lost"))
    job = store.change_job(job_id, lifecycle.claimed(process_identity.this_driver()))
    if job.state is not JobState.RUNNING:
        raise OrderedError(Order.CANCEL if job.state is JobState.CANCELLED else Order.PAUSE)
    try:
        with Lease(store, job) as lease:
            return drive(store, job, lease, listener or Silent(), DriverOptions(task_file=task_file))
    except ClusterLostError as error:
        store.change_job(job_id, lifecycle.settled(job.epoch, JobState.FAILED, str(error), error=str(error)))
        raise


def recover_maps(
    store: DriverStore,
    job_id: str,
    picks: Sequence[str],
    settings: RecoverySettings,
    *,
    listener: Listener | None = None,
    task_file: str | None = None,
) -> JobRecord:
    """Recover maps of a job whose search has ended, in this process, and return the job.

    Args:
        store: where the job and its results are recorded.
        job_id: the job.
        picks: which maps; see ``autotune.jobs.recovery.to_recover``.
        settings: how; the time limit is that of all maps together.
        listener: is notified of the progress; None for no listener.
        task_file: a Python file that registers the job's task; workers execute it.

    Raises:
        ConflictError: if the search has not ended, no such map can be recovered, or see ``run_job``.
        AutotuneError: if the task, the backend or the workers fail.
    """
    before = store.job(job_id)
    if not to_recover(store.trials(job_id), before.spec, picks):
        return before  # before workers start in vain
    job = store.change_job(job_id, lifecycle.claimed(process_identity.this_driver(), recovering=True))
    options = DriverOptions(task_file=task_file)
    message = "Recovery ended"
    try:
        with (
            Lease(store, job) as lease,
            _working(store, job, lease, listener or Silent(), options) as (_, recovery, stages),
        ):
            recovery.run(picks, settings)
            stages.stage(message)
    except LeaseLostError:
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        message = "Recovery stopped by its user" if stopped else f"Recovery ended: {str(error) or type(error).__name__}"
        store.change_job(job.id, lifecycle.recovery_ended(job.epoch, before, message))
        raise
    return store.change_job(job.id, lifecycle.recovery_ended(job.epoch, before, message))


def drive(store: DriverStore, job: JobRecord, lease: Lease, listener: Listener, options: DriverOptions) -> JobRecord:
    """Search for a job that this process holds, and record how it ended.

    Raises:
        LeaseLostError: if another driver took over the job; nothing more was written.
        OrderedError: if the user paused or cancelled the job; its state is recorded.
        ClusterLostError: if the cluster was lost; the job is still held.
        Stopped: if the driver should stop and the job continue elsewhere; the job is still held.
        AutotuneError: for every other failure; the job is recorded as failed.
    """

    def settle(state: JobState, message: str, error: str | None = None) -> JobRecord:
        return store.change_job(job.id, lifecycle.settled(job.epoch, state, message, error=error))

    try:
        reason = _search(store, job, lease, listener, options)
    except (LeaseLostError, ClusterLostError, Stopped):
        raise
    except OrderedError:
        # The user may have withdrawn the order since the last poll.
        store.change_job(job.id, lifecycle.released(job.epoch, "The user withdrew the order"))
        raise
    except KeyboardInterrupt:
        settle(JobState.PAUSED, "Stopped by its user")
        raise
    except BaseException as error:
        message = str(error) if isinstance(error, AutotuneError) else f"{type(error).__name__}: {error}"
        settle(JobState.FAILED, message, error=message)
        raise
    return settle(JobState.FINISHED, f"Search finished: {reason}")


def _search(store: DriverStore, job: JobRecord, lease: Lease, listener: Listener, options: DriverOptions) -> str:
    with _working(store, job, lease, listener, options) as (search, recovery, stages):
        reason = search.run()
        section = job.spec.recovery
        if section is not None:
            recovery.run(section.picks, section.settings(job.spec.search.seed), lenient=True)
        stages.stage(f"Search finished: {reason}")
        return reason


@contextmanager
def _working(
    store: DriverStore, job: JobRecord, lease: Lease, listener: Listener, options: DriverOptions
) -> Iterator[tuple[Search, Recovery, Stages]]:
    """Start workers for a job, yield what works with them and what tells about it, and release them."""
    spec = job.spec
    setup = spec.worker_setup(options.task_file)
    if job.description is not None:
        setup = setup.continued(job.description)
    stages = Stages(listener, lease.tell)
    stages.stage("Starting workers")
    pool = build_pool(spec.workers.pool, setup, _workers(spec, job.description, options), stages.report)
    try:
        described = pool.describe()
        _check_spaces(spec, job.description or described)
        job = _describe(store, job, described)
        lease.check()
        ledger = Ledger(store, job, stages, loading_s=described.loading_seconds)
        probe = functools.partial(obtain_probes, store, job, pool, stages)
        search = Search(job, searches_of(job, pool.slots), pool, stages, lease, ledger, probe)
        yield search, Recovery(store, job, pool, stages, lease, ledger), stages
        store.change_job(job.id, lifecycle.with_fields(job.epoch, event("time_spent", stages.time_spent())))
    finally:
        pool.close()


def _workers(spec: JobSpec, before: ModelDescription | None, options: DriverOptions) -> PoolSettings:
    settings = spec.pool_settings()
    if before is not None:
        settings = dataclasses.replace(settings, kind=before.environment.kind)
    if options.ray_address is None:
        return settings
    return dataclasses.replace(settings, ray_address=options.ray_address, shared=True)


def _describe(store: DriverStore, job: JobRecord, description: ModelDescription) -> JobRecord:
    """Record the workers' description of the model, or check that model and hardware are unchanged."""
    spec = job.spec
    _check_figures(spec, job.description or description)
    if job.description is None:
        told = [
            event("backend_left_out", f"No map runs on {name}: {why}")
            for name, why in left_out(spec, description).items()
        ]
        return store.change_job(job.id, lifecycle.with_fields(job.epoch, *told, description=description))
    if job.description.fingerprint != description.fingerprint:
        raise ConflictError(
            f"task {job.task!r} now builds a model with other weights than job {job.id} was started with; "
            "its trials would not be comparable, so start a new job"
        )
    _check_kind(job.id, job.description.environment.kind, description.environment.kind)
    return job


def _check_kind(job_id: str, before: str, now: str) -> None:
    """Check that the kind of hardware is unchanged; jobs without a recorded kind may continue anywhere.

    Raises:
        ConflictError: if the kind of hardware changed.
    """
    if before and before != now:
        raise ConflictError(
            f"job {job_id} was started on {before!r}, but this worker measures on {now!r}; its trials would not "
            f"be comparable, so resume it where it was started, or start a new job here: autotune clone {job_id}"
        )


def _check_figures(spec: JobSpec, description: ModelDescription) -> None:
    """Check that the task provides every metric the job needs; a limit on an unmeasured metric would always hold.

    Raises:
        JobSpecError: if the task lacks a workload or shifted data.
    """
    for workload in spec.workloads():
        if workload not in description.workloads:
            raise JobSpecError(
                f"the job needs workload {workload}, but task {spec.task.name!r} on {description.environment.backend} "
                f"has {', '.join(description.workloads) or 'only the forward pass'}; use latency_p50_ms"
            )
    wanted = [METRICS[name] for name in spec.metrics() if METRICS[name].split is Split.SHIFTED]
    if wanted and description.calibration.clipped is None:
        raise JobSpecError(
            f"{wanted[0].name} needs a task with shifted data, but task {spec.task.name!r} has none; "
            f"use {metric_of(wanted[0].kind, Split.EVALUATION).name}"
        )


def _check_spaces(spec: JobSpec, description: ModelDescription) -> None:
    """Check that at least one backend has maps other than full precision.

    Raises:
        SpaceError: if none has; the message names the first reason on the first backend.
    """
    spaces = [space_of(spec, description.on(name)) for name in competing(spec, description)]
    if any(set(group.choices) != {FULL_PRECISION.name} for space in spaces for group in space.groups):
        return
    space = spaces[0]
    if not space.layers:
        raise SpaceError(
            "nothing to search: no layer of the model can be quantized; docs/tasks.md lists the supported layers"
        )
    refused = next(((layer, *each) for layer, reasons in space.refusals.items() for each in reasons.items()), None)
    why = f": {refused[0]}: {refused[1]}: {refused[2]}" if refused else ""
    raise SpaceError(
        f"nothing to search: none of the model's {len(space.layers)} layers may take anything but "
        f"{FULL_PRECISION.name}{why}; allow other choices in search.choices or search.layers"
    )
