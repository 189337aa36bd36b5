"""Run one job from its claim to its end."""

import dataclasses
import time
from dataclasses import dataclass

from autotune.errors import ConflictError, JobSpecError, LeaseLostError, Stopped
from autotune.jobs import lifecycle
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.progress import Listener, Silent
from autotune.jobs.records import JobRecord, JobState, Order
from autotune.jobs.spec import JobSpec, SamplerName
from autotune.metrics.catalog import METRICS, metric_of
from autotune.search import process_identity
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.loop import Search, space_of
from autotune.search.probing import obtain_probes
from autotune.store.base import DriverStore
from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError, SpaceError
from search_spaces.space import SearchSpace
from workers.errors import ClusterLostError
from workers.measurement import Split
from workers.pools.build import build_pool
from workers.setup import ModelDescription, PoolSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """Where a driver finds workers, and code that the job file must not name."""

    #: A Python file that registers the job's task; workers run it.
    task_file: str | None = None
    #: Address of the cluster that all jobs share; None takes the one of the job file.
    ray_address: str | None = None


def run_job(
    store: DriverStore, job_id: str, *, listener: Listener | None = None, task_file: str | None = None
) -> JobRecord:
    """Search in this process until the job's budget is used up, and return the finished job.

    A job that ran before goes on where it stopped: its trials are told to a new study.

    Args:
        store: where the job is recorded and everything found about it will be.
        job_id: the job.
        listener: watches; None is silent.
        task_file: a Python file that registers the job's task; workers run it.

    Raises:
        ConflictError: if another process drives the job, or its task now builds another model, or this
            is another kind of hardware.
        OrderedError: if its user paused or cancelled it meanwhile.
        AutotuneError: if the task, the backend or the workers cannot do it.
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


def drive(store: DriverStore, job: JobRecord, lease: Lease, listener: Listener, options: DriverOptions) -> JobRecord:
    """Search for a job that this process holds, and record how it ended.

    Raises:
        LeaseLostError: if another driver took the job over; nothing more was written.
        OrderedError: if the job's user paused or cancelled it; that is recorded.
        ClusterLostError, Stopped: if the job should go on elsewhere; it is still held.
        AutotuneError: what else went wrong; the job is recorded as failed.
    """

    def settle(state: JobState, message: str, error: str | None = None) -> JobRecord:
        return store.change_job(job.id, lifecycle.settled(job.epoch, state, message, error=error))

    try:
        reason = _search(store, job, lease, listener, options)
    except (LeaseLostError, ClusterLostError, Stopped):
        raise
    except OrderedError:
        # What the user wants may have changed since the driver looked.
        store.change_job(job.id, lifecycle.released(job.epoch, "Its user took the order back"))
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
    spec = job.spec
    setup = spec.worker_setup(options.task_file)
    if job.description is not None:
        setup = setup.continued(job.description)
    listener.stage("Starting workers")
    pool = build_pool(spec.workers.pool, setup, _workers(spec, job.description, options))
    try:
        job = _describe(store, job, pool.describe())
        lease.check()
        started_at = time.monotonic()
        probes = obtain_probes(store, job, pool, listener) if spec.search.sampler is SamplerName.SENSITIVITY else None
        probed_s = time.monotonic() - started_at
        ledger = Ledger(store, job, listener, probed_s=probed_s)
        reason = Search(job, pool, listener, lease, ledger, probes).run()
        listener.stage(f"Search finished: {reason}")
        return reason
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
    """Record what the workers say about the model, or check that it is still the same model on the same hardware."""
    spec = job.spec
    _check_figures(spec, job.description or description)
    _check_space(space_of(spec, job.description or description))
    if job.description is None:
        return store.change_job(job.id, lifecycle.held(job.epoch, description=description))
    if job.description.fingerprint != description.fingerprint:
        raise ConflictError(
            f"task {job.task!r} now builds a model with other weights than job {job.id} was started with; "
            "its trials would not compare, so start a new job"
        )
    _check_kind(job.id, job.description.environment.kind, description.environment.kind)
    return job


def _check_kind(job_id: str, before: str, now: str) -> None:
    """Check that a job goes on where it was started; jobs from before kinds were told apart may go on anywhere.

    Raises:
        ConflictError: if it does not.
    """
    if before and before != now:
        raise ConflictError(
            f"job {job_id} was started on {before!r}, but this worker measures on {now!r}; its trials would not "
            f"compare, so go on with it where it was started, or start a new job here: autotune clone {job_id}"
        )


def _check_figures(spec: JobSpec, description: ModelDescription) -> None:
    """Check that the task has what the job goes by, or a limit would hold because nothing is measured.

    Raises:
        JobSpecError: if it has not.
    """
    for workload in spec.workloads():
        if workload not in description.workloads:
            raise JobSpecError(
                f"workload {workload} is wanted, but task {spec.task.name!r} on {description.environment.backend} has "
                f"{', '.join(description.workloads) or 'none but the forward pass'}; take latency_p50_ms"
            )
    wanted = [METRICS[name] for name in spec.metrics() if METRICS[name].split is Split.SHIFTED]
    if wanted and description.calibration.clipped is None:
        raise JobSpecError(
            f"{wanted[0].name} needs a task with shifted data, but task {spec.task.name!r} has none; "
            f"take {metric_of(wanted[0].kind, Split.EVALUATION).name}"
        )


def _check_space(space: SearchSpace) -> None:
    """Check that there is any map beside full precision.

    Raises:
        SpaceError: if there is none; it names the first reason.
    """
    if any(set(group.choices) != {FULL_PRECISION.name} for group in space.groups):
        return
    if not space.layers:
        raise SpaceError(
            "nothing can be searched, because no layer of the model can be quantized; docs/tasks.md lists which can"
        )
    refused = next(((layer, *each) for layer, reasons in space.refusals.items() for each in reasons.items()), None)
    why = f": {refused[0]}: {refused[1]}: {refused[2]}" if refused else ""
    raise SpaceError(
        f"nothing can be searched, because none of the model's {len(space.layers)} layers may take anything but "
        f"{FULL_PRECISION.name}{why}; allow other choices by search.choices or search.layers"
    )
