"""The driver's lease: a background thread renews it, polls for the user's orders, and records the driver's stage."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from autotune.errors import LeaseLostError, NotFoundError, StoreError
from autotune.jobs.lifecycle import LEASE_S, RENEWALS, OrderedError
from autotune.jobs.records import Directions, HeldJob, JobRecord, JobStage
from autotune.store.base import DriverStore

_log = logging.getLogger(__name__)

#: Polls for the user's orders per lease: one per second at the default length.
_POLLS = 30
#: Share of a lease after which a driver that cannot renew it submits no more work.
_OVERDUE = 2 / 3


class Lease:
    """Holds a claimed job. Use as a context manager."""

    def __init__(
        self,
        store: DriverStore,
        job: JobRecord,
        *,
        lease_s: float = LEASE_S,
        grace_s: float = 5.0,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        """Hold ``job``, which its driver has claimed.

        Args:
            store: where the job is recorded.
            job: as the claim returned it.
            lease_s: seconds a lease lasts.
            grace_s: seconds the driver has to obey an order or to stop after its lease is lost.
            give_up: called by the background thread if it does not, for example because it waits for workers.
        """
        self._store, self._job, self._lease_s = store, job, lease_s
        self._grace_s, self._give_up = grace_s, give_up
        self._directions: Directions | None = None
        self._lost: LeaseLostError | NotFoundError | None = None
        self._stop_due_since: float | None = None
        self._renewed_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job.id}", daemon=True)
        #: All served jobs that drivers hold, this one included; a new list at every renewal.
        self.held_jobs: Sequence[HeldJob] = ()
        self._stage: JobStage | None = None
        self._recorded: JobStage | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # The last poll ends before the caller closes the store, unless the database does not respond.
        self._thread.join(self._lease_s / _POLLS)

    @property
    def directions(self) -> Directions | None:
        """The user's latest directions; None before the first poll."""
        return self._directions

    def tell(self, stage: JobStage) -> None:
        """Let others see what the driver is doing; it is recorded at the next poll, unless another stage follows."""
        self._stage = stage

    def check(self) -> None:
        """Return when the driver may submit work; wait while the lease cannot be renewed in time.

        Raises:
            OrderedError: if the user paused or cancelled the job.
            LeaseLostError: if another driver has the job.
        """
        while True:
            if self._lost:
                raise self._lost
            if self._directions and self._directions.order:
                raise OrderedError(self._directions.order)
            if not self._thread.is_alive() or time.monotonic() - self._renewed_at < _OVERDUE * self._lease_s:
                return
            time.sleep(self._lease_s / _POLLS)

    def _keep(self) -> None:
        """Renew the lease, poll for the user's orders and record the stage until the driver is done."""
        due_at = time.monotonic()
        while not self._ended.is_set():
            try:
                if time.monotonic() >= due_at:
                    started_at = time.monotonic()
                    self._store.renew(self._job.id, epoch=self._job.epoch, lease_s=self._lease_s)
                    self._renewed_at, due_at = started_at, started_at + self._lease_s / RENEWALS
                    self.held_jobs = self._store.held_jobs()
                self._directions = self._store.directions(self._job.id, epoch=self._job.epoch)
                self._record_stage()
            except (LeaseLostError, NotFoundError) as error:
                self._lost = error
            except StoreError as error:
                _log.warning("the lease of job %s cannot be renewed: %s", self._job.id, error)
            self._enforce()
            self._ended.wait(self._lease_s / _POLLS)

    def _record_stage(self) -> None:
        stage = self._stage
        if stage is not None and stage != self._recorded:
            self._store.record_stage(self._job.id, stage, epoch=self._job.epoch)
            self._recorded = stage

    def _enforce(self) -> None:
        """Call ``give_up`` if the driver has not stopped within its grace period."""
        if not self._lost and not (self._directions and self._directions.order):
            self._stop_due_since = None
            return
        self._stop_due_since = self._stop_due_since or time.monotonic()
        if self._give_up and time.monotonic() - self._stop_due_since >= self._grace_s:
            self._give_up()
