"""Start a pool, given its name in job files."""

from workers.pools.base import Pool
from workers.progress import Report, silent
from workers.setup import PoolSettings, WorkerSetup


def build_pool(name: str, setup: WorkerSetup, settings: PoolSettings, report: Report = silent) -> Pool:
    """Return a started pool: ``inline`` or ``ray``.

    Args:
        name: which of them.
        setup: what the workers need.
        settings: how many workers, and where.
        report: gets the workers' steps, while the pool starts and in every later call. With several workers that
            measure, it only gets those of workers that still start, because the others are told by their trials.

    Raises:
        PoolError: if no worker can be started, or none on the requested hardware.
        TaskError: if the task cannot be built.
    """
    # Ray and torch take seconds to import, so import each pool only when it is used.
    if name == "inline":
        from workers.pools.inline import InlinePool

        return InlinePool(setup, settings.hardware, report)
    from workers.pools.ray_pool import RayPool

    return RayPool(setup, settings, report)
