"""Start a pool, given its name in job files."""

from workers.pools.base import Pool
from workers.setup import PoolSettings, WorkerSetup


def build_pool(name: str, setup: WorkerSetup, settings: PoolSettings) -> Pool:
    """Return a started pool: ``inline`` or ``ray``.

    Raises:
        PoolError: if no worker can be started, or none on the requested hardware.
        TaskError: if the task cannot be built.
    """
    # Ray and torch take seconds to import, so import each pool only when it is used.
    if name == "inline":
        from workers.pools.inline import InlinePool

        return InlinePool(setup, settings.hardware)
    from workers.pools.ray_pool import RayPool

    return RayPool(setup, settings)
