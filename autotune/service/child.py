"""The process that drives one job; it can crash, hang or be killed without affecting other jobs."""

import enum
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from types import FrameType

from autotune.errors import LeaseLostError, Stopped
from autotune.jobs import lifecycle
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.progress import LogLines, Progress, stage_text
from autotune.jobs.records import JobRecord, JobStage
from autotune.search.lease import Lease
from autotune.search.run import DriverOptions, drive
from autotune.service import logs
from autotune.service.settings import ServiceSettings
from autotune.store.base import DriverStore
from autotune.store.open import attach_store
from search_spaces.errors import AutotuneError
from workers.errors import ClusterLostError

_log = logging.getLogger(__name__)


#: Signal that stops a child; Ray installs its own handler for the usual SIGTERM.
STOP = signal.SIGUSR1


class Ended(enum.IntEnum):
    """How a child ended, as its exit code."""

    #: The job has ended, successfully or not, and its end is recorded.
    SETTLED = 0
    #: Another driver holds the job.
    LEASE_LOST = 3
    #: The workers are lost; the job should continue with others.
    CLUSTER_LOST = 4
    #: The controller stopped the child; the job should continue elsewhere.
    STOPPED = 5
    #: The controller has died.
    ORPHANED = 6


def main(settings: ServiceSettings, job_id: str, epoch: int, ray_address: str | None) -> None:
    """Drive a job that the controller has claimed, and exit with one of the codes of ``Ended``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the controller too, which then stops its children
    logs.configure(as_json=settings.json_logs, job_id=job_id)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    store = attach_store(settings.database, patience_s=math.inf)
    try:
        ended = _drive(store, settings, job_id, epoch, ray_address)
    finally:
        signal.signal(STOP, signal.SIG_IGN)
        store.close()
    logging.shutdown()
    # Skip the exit handlers of libraries: nothing is left to do, and they might hang.
    os._exit(ended)


def _drive(store: DriverStore, settings: ServiceSettings, job_id: str, epoch: int, ray_address: str | None) -> Ended:
    try:
        signal.signal(STOP, _stop)
        job = store.change_job(job_id, lifecycle.with_fields(epoch))
        with Lease(store, job, lease_s=settings.lease_s, give_up=lambda: _give_up(store, job)) as lease:
            options = DriverOptions(task_file=settings.task_file, ray_address=ray_address)
            drive(store, job, lease, _LogListener(), options)
    except Stopped:
        return Ended.STOPPED
    except LeaseLostError as error:
        _log.warning("%s", error)
        return Ended.LEASE_LOST
    except ClusterLostError as error:
        _log.warning("%s", error)
        return Ended.CLUSTER_LOST
    except OrderedError as error:
        _log.info("%s", error)
    except AutotuneError as error:
        _log.error("the job failed: %s", error)
    return Ended.SETTLED


def _give_up(store: DriverStore, job: JobRecord) -> None:
    """Release the job, which carries out the user's order, and exit at once, even while waiting for workers."""
    store.change_job(job.id, lifecycle.released(job.epoch, "Its driver did not stop in time"))
    os._exit(Ended.LEASE_LOST)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(Ended.ORPHANED)


class _LogListener:
    """Logs the progress of a job."""

    def __init__(self) -> None:
        self._lines = LogLines()
        self._has_trials = False

    def stage(self, text: str) -> None:
        if self._lines.starts(text):
            _log.info("%s", text)

    def step(self, stage: JobStage) -> None:
        if not (self._has_trials and stage.detail) and self._lines.has(stage):
            _log.info("%s", stage_text(stage))

    def trial(self, progress: Progress) -> None:
        self._has_trials = True
        _log.info("%d of %d trials, %d on the front", progress.done, progress.budget, progress.front_size)
