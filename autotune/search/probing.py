"""The probes of a job's model: taken once and shared by all jobs with the same model and hardware."""

import dataclasses
import hashlib
import json
import math

from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Listener
from autotune.jobs.records import JobRecord
from autotune.jobs.timestamps import event
from autotune.store.base import DriverStore, ReadStore
from workers.errors import PoolError
from workers.pools.base import Pool
from workers.setup import Probes


def probes_of(store: ReadStore, job: JobRecord, backend: str = "") -> Probes | None:
    """Return the recorded probes that apply to a job on one of its backends; None if there are none.

    Without a ``backend``, it is the one that everything is compared with.
    """
    if job.description is None:
        return None
    return store.probes(_key(job, backend)) or store.probes(_own_key(job, backend))


def obtain_probes(
    store: DriverStore, job: JobRecord, pool: Pool, listener: Listener, budget_s: float = math.inf, backend: str = ""
) -> Probes | None:
    """Return the job's probes on a backend, from the store or taken now; None if the model cannot be probed.

    Sensitivities may take about ``budget_s`` seconds.

    Without probes, the search starts from guesses and learns from whole maps only.
    """
    recorded = probes_of(store, job, backend)
    if recorded is not None:
        return recorded
    listener.stage("Probing layers")
    try:
        probes = pool.probe(budget_s, backend)
    except PoolError as error:
        store.change_job(job.id, with_fields(job.epoch, event("probes_failed", str(error))))
        return None
    # Less exact probes of a job in a hurry must not serve other jobs.
    store.record_probes(_own_key(job, backend) if probes.cut else _key(job, backend), probes)
    message = (
        f"Probed {len(probes.layers)} layer choices in {probes.seconds:.1f} s "
        f"({probes.estimator} estimate on {probes.samples} sample{'s' * (probes.samples != 1)})"
        f"{' on ' + backend if len(job.spec.backends()) > 1 else ''}"
    )
    store.change_job(job.id, with_fields(job.epoch, event("probed", message)))
    return probes


def _own_key(job: JobRecord, backend: str) -> str:
    """Return a key that no other job has."""
    return hashlib.sha256(f"{_key(job, backend)} {job.id}".encode()).hexdigest()


def _key(job: JobRecord, backend: str) -> str:
    """Return a hash that is equal for jobs that can share probes: same model, data, kernels and hardware."""
    assert job.description is not None
    spec, described = job.spec, job.description.on(backend)
    calibration = spec.worker_setup().calibration
    # The key leaves out unset options and unknown hardware, so that probes of earlier versions are still found.
    enabled = {name: True for name in ("smoothing", "moments", "bias_correction") if getattr(calibration, name)}
    environment = dataclasses.asdict(dataclasses.replace(described.environment, load=0.0))
    if not described.environment.kind:
        del environment["kind"]
    parts = {
        "fingerprint": described.fingerprint,
        "task": spec.task.model_dump(mode="json"),
        "calibration": spec.calibration.model_dump(mode="json", exclude={"bias_correction"}) | enabled,
        "batch_size": spec.measurement.batch_sizes[0],
        "environment": environment,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
