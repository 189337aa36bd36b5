"""Run one job from its claim to its end."""

import dataclasses

from autotune import driver
from autotune.errors import ConflictError
from autotune.job_spec import JobSpec, SamplerName
from autotune.probing import obtain_probes
from autotune.progress import Listener, Silent
from autotune.search import Search
from autotune.store.base import Store
from autotune.store.clock import event
from autotune.store.records import JobRecord, JobState
from search_spaces.errors import AutotuneError
from workers.pools.build import build_pool
from workers.setup import ModelDescription


def run_job(store: Store, job_id: str, *, listener: Listener | None = None, task_file: str | None = None) -> JobRecord:
    """Search until the job's budget is used up, and return the finished job.

    A job that ran before goes on where it stopped: its trials are told to a new study.

    Args:
        store: where the job is recorded and everything found about it will be.
        job_id: the job.
        listener: watches; None is silent.
        task_file: a Python file that registers the job's task; workers run it.

    Raises:
        ConflictError: if another process drives the job, or its task now builds another model.
        AutotuneError: if the task, the backend or the workers cannot do it.
    """
    listener = listener or Silent()
    job = _claim(store, job_id)
    try:
        reason = _search(store, job, listener, task_file)
    except KeyboardInterrupt:
        store.update_job(job_id, state=JobState.INTERRUPTED, event=event("interrupted", "Stopped by its user"))
        raise
    except BaseException as error:
        message = str(error) if isinstance(error, AutotuneError) else f"{type(error).__name__}: {error}"
        store.update_job(job_id, state=JobState.FAILED, error=message, event=event("failed", message))
        raise
    return store.update_job(job_id, state=JobState.FINISHED, event=event("finished", f"Search finished: {reason}"))


def _claim(store: Store, job_id: str) -> JobRecord:
    """Mark the job as driven by this process, unless another one drives it."""
    job = store.job(job_id)
    if job.state is JobState.RUNNING and job.driver and driver.is_alive(job.driver):
        raise ConflictError(f"job {job.id} is being run by process {job.driver}; wait for it or stop it first")
    started = event("started", "Search started" if job.description is None else "Search resumed")
    return store.update_job(job_id, state=JobState.RUNNING, error=None, driver=driver.this_driver(), event=started)


def _search(store: Store, job: JobRecord, listener: Listener, task_file: str | None) -> str:
    spec = JobSpec.parse(job.spec)
    setup = spec.worker_setup(task_file)
    if job.description is not None:
        setup = dataclasses.replace(setup, ranges=job.description.calibration.ranges)
    listener.stage("Starting workers")
    pool = build_pool(spec.workers.pool, setup, spec.pool_settings())
    try:
        job = _describe(store, job, pool.describe())
        probes = obtain_probes(store, job, pool, listener) if spec.search.sampler is SamplerName.SENSITIVITY else None
        reason = Search(store, job, spec, pool, listener, probes).run()
        listener.stage(f"Search finished: {reason}")
        return reason
    finally:
        pool.close()


def _describe(store: Store, job: JobRecord, description: ModelDescription) -> JobRecord:
    """Record what the workers say about the model, or check that it is still the same model."""
    if job.description is None:
        return store.update_job(job.id, description=description)
    if job.description.fingerprint != description.fingerprint:
        raise ConflictError(
            f"task {job.task!r} now builds a model with other weights than job {job.id} was started with; "
            "its trials would not compare, so start a new job"
        )
    return job
