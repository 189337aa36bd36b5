"""The pool on Ray: long-lived actors that hold the model; ``ray_nodes`` selects their nodes."""

import dataclasses
import itertools
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from workers.candidate import Candidate, Outcome
from workers.errors import ClusterLostError, PoolError, TaskError
from workers.measurement import Failure, FailureCause, Measurement
from workers.pools.base import MAX_ATTEMPTS, Capacity
from workers.pools.failure import failure_of, starting
from workers.pools.ray_errors import cause_of, cluster_errors, cluster_lost, crash_cause, one_line
from workers.pools.ray_nodes import Nodes, Told, look
from workers.pools.ray_progress import Reported, StepBoard
from workers.progress import Report, Stage, Step, silent
from workers.recovered import Recovered, RecoverySettings
from workers.setup import ModelDescription, PoolSettings, Probes, WorkerSetup
from workers.tasks import build_task
from workers.tasks.live import LIVE, carry

if TYPE_CHECKING:
    from workers.evaluation.evaluator import Evaluator

#: Bytes of Ray's object store on a private cluster: candidates and measurements are small.
_OBJECT_STORE_BYTES = 128 << 20
#: Longest wait before deadlines are checked again, and before steps are told.
_TICK_S, _TOLD_S = 1.0, 0.3


class _Worker:
    """A worker process, run as a Ray actor."""

    def __init__(self, setup: WorkerSetup, gpus: float, live: tuple[Any, ...]) -> None:
        if not gpus:
            # Ray leaves the devices visible to workers that request none (ray issue 54868).
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._setup = setup
        self._gpus = gpus
        self._live = live
        self._report: Report = silent
        self._evaluator: Evaluator | None = None

    def start(self) -> Told:
        """Return the report about this worker's node; an answer means that the process has started."""
        return look(self._setup.backend, self._gpus)

    def describe(self, report: Report) -> ModelDescription:
        return self._ready(report).description

    def probe(self, budget_s: float, backend: str, report: Report) -> Probes:
        return self._ready(report).probe(budget_s, backend)

    def recover(
        self, choices: Mapping[str, str], backend: str, settings: RecoverySettings, report: Report
    ) -> Recovered:
        return self._ready(report).recover(choices, backend, settings)

    def measure(self, candidate: Candidate, report: Report) -> Measurement | Failure:
        evaluator = self._ready(report)
        try:
            return evaluator.measure(candidate)
        except (Exception, SystemExit) as error:
            return failure_of(error)

    def _ready(self, report: Report) -> "Evaluator":
        """Return the evaluator, built at the first call; ``report`` gets its steps until the next call."""
        self._report = report
        if self._evaluator is None:
            # Imported here so that torch sees the environment set above.
            from workers.evaluation.evaluator import Evaluator

            with starting(self._setup.task_file):
                _unpack(self._live, self._setup)
                self._evaluator = Evaluator(self._setup, lambda step: self._report(step))
        return self._evaluator


#: The driver counts attempts, so Ray itself never retries.
_Actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)


@dataclasses.dataclass(slots=True, kw_only=True)
class _Running:
    """A candidate that a worker is measuring."""

    slot: int
    candidate: Candidate
    attempts: int
    deadline: float


@dataclasses.dataclass(slots=True, kw_only=True)
class _Hired:
    """A worker of the pool."""

    actor: Any
    #: Ray reference of its report about its node; ready when its process has started.
    start: Any
    #: Ids of the nodes where it may run.
    nodes: frozenset[str]
    #: Its name on the board of steps.
    name: str
    #: Calls made to it, apart from the first one.
    calls: int = 0
    #: Its report that the pool saw last.
    seen: Reported | None = None
    has_started: bool = False

    def waits(self) -> bool:
        """Return whether Ray has not started the worker on any node yet."""
        self.has_started = self.has_started or bool(_ready([self.start], 0.0))
        return not self.has_started


class RayPool:
    """Measures candidates on Ray actors of one kind of hardware, replacing those that die or hang."""

    queues = True

    def __init__(self, setup: WorkerSetup, settings: PoolSettings, report: Report = silent) -> None:
        """Hire the first worker, wait until it is ready, and hire the others; ``report`` gets the workers' steps."""
        self.slots = 1
        self._setup = setup
        self._settings = settings
        self._report = report
        self._names = (f"worker {number}" for number in itertools.count())
        self._told: Step | None = None
        self._owns_cluster = _connect(settings)
        self._queue: deque[tuple[Candidate, int]] = deque()
        self._running: dict[Any, _Running] = {}
        #: Slot -> worker; a surplus worker is removed when it has measured its candidate.
        self._hired: dict[int, _Hired] = {}
        self._nodes = Nodes(settings, setup.backend)
        self._board = StepBoard()
        try:
            self._live = _packed(setup)
            self._nodes.choose()
            capacity = self._nodes.capacity()
            self._cpus = capacity.cpus_per_worker(settings.cpus, settings.count)
            _check_resources(settings, capacity, self._cpus)
            self._hired[0] = self._hire()
            self._description = self._wait_until_ready()
            # Later workers reuse the first one's calibration and kernels: this saves time and keeps results equal.
            self._setup = setup.continued(self._description)
            if not settings.shared:
                self.resize(settings.count)
        except BaseException:
            self.close()
            raise

    def capacity(self) -> Capacity | None:
        return self._nodes.capacity() if self._settings.shared else None

    def resize(self, count: int) -> None:
        self.slots = count
        for slot in range(count):
            if slot not in self._hired:
                self._hired[slot] = self._hire()
        self._retire()
        self._dispatch()

    def describe(self) -> ModelDescription:
        return self._description

    def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
        """See ``Pool.probe``; the first worker probes, and is replaced if it dies or hangs."""
        return cast(Probes, self._asked("probe", budget_s, backend, doing="probing the model"))

    def recover(self, choices: Mapping[str, str], backend: str, settings: RecoverySettings) -> Recovered:
        """See ``Pool.recover``; the first worker recovers, and is replaced if it dies or hangs."""
        asked = ("recover", dict(choices), backend, settings)
        limit_s = math.inf if settings.time_limit_s is None else settings.time_limit_s
        return cast(Recovered, self._asked(*asked, doing="recovering the map", more_s=limit_s))

    def submit(self, candidate: Candidate) -> None:
        self._queue.append((candidate, 1))
        self._dispatch()

    def wait(self, timeout_s: float) -> list[Outcome]:
        give_up = time.monotonic() + timeout_s
        outcomes: list[Outcome] = []
        if not self._running and not self.slots:
            time.sleep(timeout_s)
        while self._running and not outcomes:
            remaining = max(0.0, give_up - time.monotonic())
            self._tell({running.slot for running in self._running.values()})
            for reference in _ready(list(self._running), min(_TICK_S, remaining)):
                outcomes += self._collect(reference)
            outcomes += self._expire()
            self._follow_nodes()
            self._retire()
            self._dispatch()
            if remaining == 0.0:
                break
        return outcomes

    def close(self) -> None:
        if not ray.is_initialized():
            return
        for hired in self._hired.values():
            ray.kill(hired.actor)
        self._hired.clear()
        self._board.close()
        if self._owns_cluster:
            ray.shutdown()

    def _hire(self) -> _Hired:
        setup, gpus, nodes = _with_threads(self._setup, self._cpus), self._settings.gpus, self._nodes.allowed()
        actor = _placed(nodes, self._cpus, gpus).remote(setup, gpus, self._live)
        return _Hired(actor=actor, start=actor.start.remote(), nodes=nodes, name=next(self._names))

    def _wait_until_ready(self) -> ModelDescription:
        """Return the first worker's description; restart the worker if it dies meanwhile."""
        for _ in range(MAX_ATTEMPTS):
            try:
                self._nodes.met(self._wait_until_started())
                description: ModelDescription = self._answer(self._hired[0].actor.describe.remote(self._report_of(0)))
                return description
            except RayTaskError as error:
                raise cause_of(error) from None
            except RayActorError as error:
                last = error
                self._hired[0] = self._hire()
            except GetTimeoutError:
                raise PoolError(
                    f"no worker was ready within {self._settings.trial_timeout_s:g} s; "
                    "raise workers.trial_timeout_s or request fewer resources"
                ) from None
        raise PoolError(f"a worker died {MAX_ATTEMPTS} times while loading the task: {one_line(last)}")

    def _asked(self, method: str, *arguments: object, doing: str, more_s: float = 0.0) -> Any:
        """Return what the first worker's method returns.

        Args:
            method: name of the method.
            arguments: its arguments, apart from the report.
            doing: what it does, for errors.
            more_s: seconds that it may take in addition to those of a trial.

        Raises:
            PoolError: if it raises an error, dies or hangs; it is replaced then.
        """
        try:
            return self._answer(getattr(self._hired[0].actor, method).remote(*arguments, self._report_of(0)), more_s)
        except RayTaskError as error:
            raise PoolError(f"{doing} failed: {one_line(error.cause)}") from None
        except (RayActorError, GetTimeoutError) as error:
            self._replace(0)
            raise PoolError(f"a worker died or hung while {doing}: {one_line(error)}") from None

    def _answer(self, reference: Any, more_s: float = 0.0) -> Any:
        """Return what the first worker answers to a call, and tell its steps meanwhile.

        Raises:
            RayError: if the call fails; ``GetTimeoutError`` if it takes longer than a trial may.
        """
        deadline = time.monotonic() + self._settings.trial_timeout_s + more_s
        while not _ready([reference], _TOLD_S):
            deadline = self._put_off(0, deadline)
            if time.monotonic() > deadline:
                raise GetTimeoutError
            self._tell({0})
        return ray.get(reference)

    def _report_of(self, slot: int) -> Report:
        """Return the report for the next call of the worker in ``slot``."""
        hired = self._hired[slot]
        hired.calls += 1
        return self._board.report_of(hired.name, hired.calls)

    def _tell(self, slots: Set[int]) -> None:
        """Report the latest step of the workers in ``slots``; of several, that of the one that is furthest behind."""
        step = self._board.furthest_behind([(self._hired[slot].name, self._hired[slot].calls) for slot in slots])
        if step is not None and step != self._told:
            self._told = step
            self._report(step)

    def _wait_until_started(self) -> Told:
        """Return the first worker's report about its node; on a shared cluster, wait until resources are free."""
        deadline = time.monotonic() + (math.inf if self._settings.shared else self._settings.trial_timeout_s)
        while not _ready([self._hired[0].start], _TICK_S):
            if time.monotonic() > deadline:
                raise GetTimeoutError
            self._follow_nodes()
        told: Told = ray.get(self._hired[0].start)
        return told

    def _follow_nodes(self) -> None:
        """Restart workers that still wait for a node, if a node that joined later could run them."""
        for slot in [slot for slot, hired in self._hired.items() if hired.waits()]:
            if self._nodes.allowed() - self._hired[slot].nodes:
                for reference in [r for r, running in self._running.items() if running.slot == slot]:
                    running = self._running.pop(reference)
                    self._queue.appendleft((running.candidate, running.attempts))
                self._replace(slot)

    def _dispatch(self) -> None:
        busy = self._busy()
        for slot in range(self.slots):
            if slot not in busy and self._queue:
                candidate, attempts = self._queue.popleft()
                reference = self._hired[slot].actor.measure.remote(candidate, self._report_of(slot))
                deadline = time.monotonic() + self._settings.trial_timeout_s
                self._running[reference] = _Running(
                    slot=slot, candidate=candidate, attempts=attempts, deadline=deadline
                )

    def _collect(self, reference: Any) -> list[Outcome]:
        running = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except RayActorError as error:
            return self._lost(running, crash_cause(error), one_line(error))
        except RayTaskError as error:
            # The actor could not build its evaluator; a new one may succeed, for example after an outage.
            return self._lost(running, FailureCause.ERROR, one_line(cause_of(error)))
        except RayError as error:
            raise cluster_lost(error) from error
        return [self._outcome(running, result)]

    def _put_off(self, slot: int, deadline: float) -> float:
        """Return the deadline of a worker's call: anew from every report that it waits for the device."""
        hired, reported = self._hired[slot], self._board.latest().get(self._hired[slot].name)
        if reported is None or reported == hired.seen:
            return deadline
        hired.seen = reported
        waits = reported.call == hired.calls and reported.step.stage is Stage.WAITING
        return max(deadline, time.monotonic() + self._settings.trial_timeout_s) if waits else deadline

    def _expire(self) -> list[Outcome]:
        now = time.monotonic()
        outcomes = []
        for running in self._running.values():
            running.deadline = self._put_off(running.slot, running.deadline)
        for reference in [r for r, running in self._running.items() if running.deadline < now]:
            running = self._running.pop(reference)
            message = f"no result within workers.trial_timeout_s = {self._settings.trial_timeout_s:g} s"
            outcomes += self._lost(running, FailureCause.TIMEOUT, message)
        return outcomes

    def _lost(self, running: _Running, cause: FailureCause, message: str) -> list[Outcome]:
        """Replace the worker; retry its candidate, or return a failure after the last attempt."""
        self._replace(running.slot)
        if running.attempts < MAX_ATTEMPTS:
            # At the head of the queue, so that a retry does not wait behind all other candidates.
            self._queue.appendleft((running.candidate, running.attempts + 1))
            return []
        return [self._outcome(running, Failure(cause=cause, message=message, attempts=running.attempts))]

    def _replace(self, slot: int) -> None:
        ray.kill(self._hired[slot].actor)
        self._hired[slot] = self._hire()

    def _busy(self) -> set[int]:
        return {running.slot for running in self._running.values()}

    def _retire(self) -> None:
        """End surplus workers that are idle."""
        for slot in [slot for slot in self._hired if slot >= self.slots and slot not in self._busy()]:
            ray.kill(self._hired.pop(slot).actor)

    def _outcome(self, running: _Running, result: Measurement | Failure) -> Outcome:
        worker = f"ray:{self._hired[running.slot].actor._actor_id.hex()[:12]}"
        return Outcome(candidate=running.candidate, result=result, attempts=running.attempts, worker=worker)


def _with_threads(setup: WorkerSetup, cpus: float) -> WorkerSetup:
    """Return the setup with as many threads as a worker has CPUs, unless it names a number."""
    if setup.measurement.threads:
        return setup
    measurement = dataclasses.replace(setup.measurement, threads=max(1, math.floor(cpus)))
    return dataclasses.replace(setup, measurement=measurement)


def _placed(nodes: frozenset[str], cpus: float, gpus: float) -> Any:
    """Return the actor class for workers with these resources on one of the nodes."""
    # Ray sets this label on every node; a label for the kind would depend on how each node is started.
    label = {"ray.io/node-id": f"in({','.join(sorted(nodes))})"}
    return _Actor.options(num_cpus=cpus, num_gpus=gpus, label_selector=label)


def _connect(settings: PoolSettings) -> bool:
    """Join or start a cluster; return whether this process must shut Ray down."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if settings.ray_address == "local":
            cores = os.cpu_count() or 1
            wanted = math.ceil(settings.count * (settings.cpus or 1))
            quiet["include_dashboard"] = False
            ray.init(
                address="local",
                num_cpus=max(cores, wanted),
                object_store_memory=_OBJECT_STORE_BYTES,
                namespace="autotune",
                **quiet,
            )
        else:
            ray.init(address=settings.ray_address, namespace="autotune", **quiet)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterLostError(
            f"cannot reach Ray at {settings.ray_address!r}: {one_line(error)}; "
            "start the cluster, or set workers.ray_address to local"
        ) from error
    finally:
        # Ray's own handler exits, which would look like a failure of the job.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return True


def _packed(setup: WorkerSetup) -> tuple[Any, ...]:
    """Return a Ray reference to the task if it is an object of this process; empty if workers can build the task.

    Raises:
        TaskError: if another process holds the task, or Ray cannot pickle it.
    """
    if setup.task != LIVE:
        return ()
    task = build_task(setup.task, setup.task_parameters)
    try:
        return (ray.put(task),)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise TaskError(
            f"the model or its data cannot be sent to Ray workers: {one_line(error)}; leave out what cannot be "
            "pickled, or measure in this process, without workers"
        ) from error


def _unpack(live: tuple[Any, ...], setup: WorkerSetup) -> None:
    """Keep the tasks that ``_packed`` returned in this process."""
    for reference in live:
        carry(ray.get(reference), setup.task_parameters)


def _check_resources(settings: PoolSettings, capacity: Capacity, cpus: float) -> None:
    """Reject a request that the cluster can never satisfy; Ray itself would wait forever."""
    count = 1 if settings.shared else settings.count
    for name, each, have in (("CPUs", cpus, capacity.cpus), ("GPUs", settings.gpus, capacity.gpus)):
        if each * count > have:
            raise PoolError(
                f"{count} workers with {each:g} {name} each need {each * count:g} {name}, but the Ray cluster "
                f"has {have:g}; lower workers.count or workers.{name.lower()}, or add nodes"
            )


def _ready(references: list[Any], timeout_s: float) -> list[Any]:
    """Return all ready references, as soon as one is ready or the timeout has passed."""
    with cluster_errors():
        if ray.wait(references, num_returns=1, timeout=timeout_s)[0]:
            return list(ray.wait(references, num_returns=len(references), timeout=0)[0])
    return []
