"""How many workers of a cluster each job gets: a pure function that every driver evaluates independently."""

from collections.abc import Sequence

from autotune.jobs.records import HeldJob
from workers.pools.base import Capacity

#: Fractions of GPUs do not add up exactly.
_TINY = 1e-9


def fair_shares(jobs: Sequence[HeldJob], capacity: Capacity) -> dict[str, int]:
    """Return job id -> workers, as equal as the jobs' requests and the cluster's resources allow (max-min fairness).

    Workers are assigned one at a time to the job that has the fewest. The first in ``jobs`` wins ties, so ``jobs`` must
    be ordered by rank. No worker that a job could use is left idle. Jobs on other kinds of hardware are excluded;
    jobs whose kind is not known yet are included, because they may need this one.

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
    """Return whether the job's workers may run on this hardware."""
    return not (job.kind and capacity.kinds) or job.kind in capacity.kinds
