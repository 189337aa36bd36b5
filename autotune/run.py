"""Drive one job: ask, submit, wait, record, tell."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from autotune import driver
from autotune.errors import ConflictError
from autotune.figures import MIB, Reference, figures_of
from autotune.front import compute_front
from autotune.job_spec import JobSpec
from autotune.metrics import Constraint, Figure
from autotune.objectives import Objectives
from autotune.progress import Listener, Progress, Silent
from autotune.store.base import Store
from autotune.store.clock import now
from autotune.store.records import (
    EventRecord,
    FrontRecord,
    JobRecord,
    JobState,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.study import Proposal, Study
from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError
from search_spaces.quantization_map import map_key
from search_spaces.space import SearchSpace, build_space
from workers.measurement import Failure, Measurement
from workers.pools.base import Candidate, Outcome, Pool
from workers.pools.build import build_pool
from workers.setup import ModelDescription

#: Seconds the driver waits for an outcome before it looks at the clock again.
_TICK_S = 1.0


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
        _search(store, job, listener, task_file)
    except KeyboardInterrupt:
        store.update_job(job_id, state=JobState.INTERRUPTED, event=_event("interrupted", "Stopped by its user"))
        raise
    except BaseException as error:
        message = str(error) if isinstance(error, AutotuneError) else f"{type(error).__name__}: {error}"
        store.update_job(job_id, state=JobState.FAILED, error=message, event=_event("failed", message))
        raise
    return store.update_job(job_id, state=JobState.FINISHED, event=_event("finished", "Search finished"))


def _claim(store: Store, job_id: str) -> JobRecord:
    """Mark the job as driven by this process, unless another one drives it."""
    job = store.job(job_id)
    if job.state is JobState.RUNNING and job.driver and driver.is_alive(job.driver):
        raise ConflictError(f"job {job.id} is being run by process {job.driver}; wait for it or stop it first")
    event = _event("started", "Search started" if job.description is None else "Search resumed")
    return store.update_job(job_id, state=JobState.RUNNING, error=None, driver=driver.this_driver(), event=event)


def _search(store: Store, job: JobRecord, listener: Listener, task_file: str | None) -> None:
    spec = JobSpec.parse(job.spec)
    setup = spec.worker_setup(task_file)
    if job.description is not None:
        setup = dataclasses.replace(setup, ranges=job.description.calibration.ranges)
    listener.stage("Starting workers")
    pool = build_pool(spec.workers.pool, setup, spec.pool_settings())
    try:
        job = _describe(store, job, pool.describe())
        _Search(store, job, spec, pool, listener).run()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A candidate that was asked for and has no result yet."""

    number: int
    kind: TrialKind
    label: str | None
    choices: Mapping[str, str]
    #: None for full precision where it is not part of the space.
    proposal: Proposal | None


class _Search:
    """The search of one job, from its last recorded trial to the end of its budget."""

    def __init__(self, store: Store, job: JobRecord, spec: JobSpec, pool: Pool, listener: Listener) -> None:
        assert job.description is not None
        self._store, self._job, self._spec, self._pool, self._listener = store, job, spec, pool, listener
        self._description = job.description
        self._space = _space_of(spec, job.description)
        self._constraints = spec.constraints.constraints()
        self._trials = store.trials(job.id)
        self._front = (store.fronts(job.id) or [None])[-1]
        self._pending: dict[int, _Pending] = {}
        self._elapsed_s = job.elapsed_s
        self._clock = time.monotonic()
        self._reference: Reference | None = None
