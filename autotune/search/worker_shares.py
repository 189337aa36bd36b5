"""How many workers of a cluster each job gets: a pure function that every driver evaluates for itself."""

from collections.abc import Sequence

from autotune.jobs.records import HeldJob
from workers.pools.base import Capacity

#: Fractions of GPUs do not add up exactly.
_TINY = 1e-9


def fair_shares(jobs: Sequence[HeldJob], capacity: Capacity) -> dict[str, int]:
    """Return job id -> workers, as equal as the jobs' jobs and the cluster's resources allow (max-min fairness).

    Workers are handed out one at a time, to the job that has fewest; of equal ones the first in ``jobs`` is
    served, so that they must be ordered by rank. No worker is left idle that some job could use. Jobs on other kinds
    of hardware are left out; those whose kind is not known yet are not, since they may need it.

    Source: D. Bertsekas, R. Gallager, Data Networks, 2nd edition, section 6.5.2.
    """
    jobs = [job for job in jobs if _competes(job, capacity)]
    shares = {job.job_id: 0 for job in jobs}
    cpus, gpus = capacity.cpus, capacity.gpus
    wanting = list(jobs)
    while wanting:
        job = min(wanting, key=lambda d: shares[d.job_id])
        needs = capacity.cpus_per_worker(job.cpus, job.count)
        if shares[job.job_id] == job.count or needs > cpus + _TINY or job.gpus > gpus + _TINY:
            wanting.remove(job)
            continue
        shares[job.job_id] += 1
        cpus, gpus = cpus - needs, gpus - job.gpus
    return shares


def _competes(job: HeldJob, capacity: Capacity) -> bool:
    """Return whether the job's workers may be on this hardware."""
    return not (job.kind and capacity.kinds) or job.kind in capacity.kinds
