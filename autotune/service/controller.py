"""The controller: claims jobs from the queue and runs each in a child process, until it is stopped.

Any number of controllers may share a database. The state of every job is recorded, so that another controller can
continue it at any time.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from autotune.errors import LeaseLostError, StoreError
from autotune.jobs import lifecycle
from autotune.jobs.records import JobRecord, JobState
from autotune.search import process_identity
from autotune.service import child
from autotune.service.child import Ended
from autotune.service.settings import ServiceSettings
from autotune.store.base import Store
from workers.errors import ClusterLostError
from workers.pools.ray_head import RayHead, answers, use_token

_log = logging.getLogger(__name__)

#: Seconds that a child may take to stop.
_STOP_S = 10.0
#: Seconds between two checks for an unreachable cluster.
_CLUSTER_PAUSE_S = 5.0
#: Modules imported before a child process is forked, so that jobs start at once.
_PRELOADED = ["autotune.service.child", "workers.evaluation.evaluator", "workers.pools.ray_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    process: BaseProcess
    job_id: str
    epoch: int
    #: Whether it uses the Ray cluster.
    on_cluster: bool


class Controller:
    """Runs the jobs of a database."""

    def __init__(self, store: Store, settings: ServiceSettings) -> None:
        self._store, self._settings = store, settings
        self._head = RayHead() if settings.ray_address is None else None
        self._children: list[_Child] = []
        self._stopped = threading.Event()
        self._cluster_is_missed, self._look_for_cluster_at = False, 0.0
        self._context = multiprocessing.get_context("forkserver")

    def run(self) -> None:
        """Run jobs until ``stop`` is called; then put running jobs back into the queue."""
        use_token()  # before the first child, which inherits it
        self._preload()
        _log.info("controller %s is ready for %d jobs at a time", process_identity.this_driver(), self._settings.jobs)
        try:
            while not self._stopped.is_set():
                try:
                    self._look_after_children()
                    self._release_jobs_of_dead_drivers()
                    self._start_jobs()
                except StoreError as error:
                    _log.warning("%s", error)
                self._stopped.wait(self._settings.poll_s)
        finally:
            self._end_children()
            if self._head:
                self._head.stop()

    def stop(self) -> None:
        """Make ``run`` return. Safe to call from any thread or signal handler."""
        self._stopped.set()

    def _preload(self) -> None:
        """Import the drivers' modules before the first job; this takes seconds, during which a lease would expire."""
        self._context.set_forkserver_preload(_PRELOADED)
        empty = self._context.Process()
        empty.start()
        empty.join()

    def _start_jobs(self) -> None:
        """Claim jobs while there is room for them, unless the cluster is unreachable."""
        if self._cluster_is_missed and not self._cluster_is_back():
            return
        while len(self._children) < self._settings.jobs and not self._cluster_is_missed:
            claim = lifecycle.claimed(process_identity.this_driver(), self._settings.lease_s)
            job = self._store.claim_next(claim)
            if job is None:
                return
            if job.state is JobState.RUNNING:  # otherwise claiming has carried out the user's order
                self._start(job)

    def _start(self, job: JobRecord) -> None:
        on_cluster = job.spec.workers.pool == "ray"
        address = None
        if on_cluster:
            try:
                address = self._cluster()
                # Starting a cluster takes a while, and nobody renewed the lease meanwhile.
                self._store.renew(job.id, epoch=job.epoch, lease_s=self._settings.lease_s)
            except LeaseLostError as error:
                _log.warning("%s", error, extra={"job": job.id})
                return
            except ClusterLostError as error:
                self._miss_cluster()
                self._release(job.id, job.epoch, f"Waiting for a Ray cluster: {error}")
                return
        process = self._context.Process(target=child.main, args=(self._settings, job.id, job.epoch, address))
        process.start()
        _log.info("started in process %d", process.pid, extra={"job": job.id})
        self._children.append(_Child(process=process, job_id=job.id, epoch=job.epoch, on_cluster=on_cluster))

    def _cluster(self) -> str:
        """Return the cluster's address; start the cluster first if it is the controller's own and not running."""
        if self._head is None:
            assert self._settings.ray_address is not None
            if not answers(self._settings.ray_address):
                raise ClusterLostError(f"nothing answers at {self._settings.ray_address}; start the cluster")
            return self._settings.ray_address
        if not self._head.is_up():
            _log.info("starting Ray on this machine")
            self._head.start()
        return self._head.address

    def _miss_cluster(self) -> None:
        self._cluster_is_missed, self._look_for_cluster_at = True, time.monotonic() + _CLUSTER_PAUSE_S

    def _cluster_is_back(self) -> bool:
        """Check every few seconds whether the cluster is reachable again; until then the controller claims no jobs."""
        if time.monotonic() < self._look_for_cluster_at:
            return False
        try:
            self._cluster()
        except ClusterLostError:
            self._miss_cluster()
        else:
            self._cluster_is_missed = False
        return not self._cluster_is_missed

    def _look_after_children(self) -> None:
        if any(one.on_cluster for one in self._children) and not self._cluster_is_up():
            self._end_children_on_the_cluster()
        for one in [one for one in self._children if one.process.exitcode is not None]:
            self._children.remove(one)
            self._handle_end(one)

    def _handle_end(self, one: _Child) -> None:
        """Release the job of a child that has ended, unless the job is settled or another driver holds it."""
        code = one.process.exitcode
        assert code is not None
        one.process.close()
        if code == Ended.CLUSTER_LOST:
            self._miss_cluster()
            self._release(one.job_id, one.epoch, "Its workers were lost with the Ray cluster")
        elif code == Ended.STOPPED:
            self._release(one.job_id, one.epoch, "Its controller was stopped")
        elif code not in (Ended.SETTLED, Ended.LEASE_LOST):
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self._release(one.job_id, one.epoch, f"its driver ended with {how}", crashed=True)

    def _release(self, job_id: str, epoch: int, message: str, *, crashed: bool = False) -> None:
        _log.warning("%s", message, extra={"job": job_id})
        self._store.change_job(job_id, lifecycle.released(epoch, message, crashed=crashed))

    def _release_jobs_of_dead_drivers(self) -> None:
        """Release jobs whose driver was on this host and has died, without waiting for their leases to expire."""
        for job in self._store.held_jobs():
            if process_identity.is_gone(job.driver):
                self._release(job.job_id, job.epoch, f"Driver {job.driver} was lost")

    def _cluster_is_up(self) -> bool:
        if self._head:
            return self._head.is_up()
        assert self._settings.ray_address is not None
        return answers(self._settings.ray_address)

    def _end_children_on_the_cluster(self) -> None:
        """Kill the children that use a lost cluster, because they may wait for an answer forever."""
        for one in [one for one in self._children if one.on_cluster]:
            one.process.kill()
            one.process.join()
            self._children.remove(one)
            one.process.close()
            self._release(one.job_id, one.epoch, "Its workers were lost with the Ray cluster")

    def _end_children(self) -> None:
        """Stop every child, so that it frees its workers, and release its job."""
        for one in self._children:
            if one.process.pid and one.process.exitcode is None:
                os.kill(one.process.pid, child.STOP)
        deadline = time.monotonic() + _STOP_S
        for one in self._children:
            one.process.join(max(0.0, deadline - time.monotonic()))
            if one.process.exitcode is None:
                one.process.kill()
                one.process.join()
            code = one.process.exitcode
            if code not in (Ended.SETTLED, Ended.LEASE_LOST):
                with suppress(StoreError):  # then the lease expires
                    self._release(one.job_id, one.epoch, "Its controller was stopped")
            one.process.close()
        self._children.clear()
