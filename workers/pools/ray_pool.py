"""The pool on Ray: long-lived actors that hold the model; the only file that imports ray."""

import dataclasses
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from search_spaces.errors import AutotuneError
from workers.errors import ClusterLostError, PoolError
from workers.measurement import Failure, FailureCause, Measurement
from workers.pools.base import MAX_ATTEMPTS, Candidate, Capacity, Outcome
from workers.pools.failure import failure_of, starting
from workers.setup import ModelDescription, PoolSettings, Probes, WorkerSetup

if TYPE_CHECKING:
    from workers.evaluate import Evaluator

#: Bytes of Ray's object store on a private cluster: candidates and measurements are small.
_OBJECT_STORE_BYTES = 128 << 20
#: Longest a call waits before deadlines are looked at again.
_TICK_S = 1.0


class _Worker:
    """A worker process, run as a Ray actor."""

    def __init__(self, setup: WorkerSetup, gpus: float) -> None:
        if not gpus:
            # Ray leaves the devices visible to workers that asked for none (ray issue 54868).
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._setup = setup
        self._evaluator: Evaluator | None = None

    def start(self) -> None:
        """Do nothing; that it was done says that the worker's process has started."""

    def describe(self) -> ModelDescription:
        return self._ready().description

    def probe(self) -> Probes:
        return self._ready().probe()

    def measure(self, candidate: Candidate) -> Measurement | Failure:
        evaluator = self._ready()
        try:
            return evaluator.measure(candidate)
        except Exception as error:
            return failure_of(error)

    def _ready(self) -> "Evaluator":
        if self._evaluator is None:
            # Imported here so that the environment set above is in force before torch looks at it.
            from workers.evaluate import Evaluator

            with starting(self._setup.task_file):
                self._evaluator = Evaluator(self._setup)
        return self._evaluator


#: The driver counts attempts, so Ray itself never retries.
_Actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)


@dataclasses.dataclass(slots=True, kw_only=True)
class _Running:
    """A candidate on its worker."""

    slot: int
    candidate: Candidate
    attempts: int
    deadline: float


class RayPool:
    """Measures candidates on Ray actors, replacing those that die or hang."""

    queues = True

    def __init__(self, setup: WorkerSetup, settings: PoolSettings) -> None:
        self.slots = 1
        self._setup = setup
        self._settings = settings
        self._owns_cluster = _connect(settings)
        self._queue: deque[tuple[Candidate, int]] = deque()
        self._running: dict[Any, _Running] = {}
        #: Slot -> worker; a slot that is too many goes when it has measured its candidate.
        self._actors: dict[int, Any] = {}
        try:
            self._capacity = _capacity(settings)
            self._cpus = self._capacity.cpus_per_worker(settings.cpus, settings.count)
            _check_resources(settings, self._capacity, self._cpus)
            self._actors[0] = self._start_actor()
            self._description = self._wait_until_ready()
            # All further workers take the first one's ranges and bits: calibration is paid once, and numbers are equal.
            self._setup = dataclasses.replace(
                setup, ranges=self._description.calibration.ranges, weight_bits=self._description.weight_bits
            )
            if not settings.shared:
                self.resize(settings.count)
        except BaseException:
            self.close()
            raise

    def capacity(self) -> Capacity | None:
        """See ``Pool.capacity``."""
        if self._settings.shared:
            with _cluster_errors():
                self._capacity = _capacity(self._settings)
            return self._capacity
        return None

    def resize(self, count: int) -> None:
        """See ``Pool.resize``."""
        self.slots = count
        for slot in range(count):
            if slot not in self._actors:
                self._actors[slot] = self._start_actor()
        self._retire()
        self._dispatch()

    def describe(self) -> ModelDescription:
        """See ``Pool.describe``."""
        return self._description

    def probe(self) -> Probes:
        """See ``Pool.probe``; the first worker does it, and is replaced if it dies of it."""
        try:
            probes: Probes = ray.get(self._actors[0].probe.remote(), timeout=self._settings.trial_timeout_s)
        except RayTaskError as error:
            raise PoolError(f"the model cannot be probed: {_one_line(error.cause)}") from None
        except (RayActorError, GetTimeoutError) as error:
            self._replace(0)
            raise PoolError(f"a worker died or hung while it probed the model: {_one_line(error)}") from None
        return probes

    def submit(self, candidate: Candidate) -> None:
        """See ``Pool.submit``."""
        self._queue.append((candidate, 1))
        self._dispatch()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See ``Pool.wait``."""
        give_up = time.monotonic() + timeout_s
        outcomes: list[Outcome] = []
        if not self._running and not self.slots:
            time.sleep(timeout_s)
        while self._running and not outcomes:
            remaining = max(0.0, give_up - time.monotonic())
            for reference in _ready(list(self._running), min(_TICK_S, remaining)):
                outcomes += self._collect(reference)
            outcomes += self._expire()
            self._retire()
            self._dispatch()
            if remaining == 0.0:
                break
        return outcomes

    def close(self) -> None:
        """See ``Pool.close``."""
        if not ray.is_initialized():
            return
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        if self._owns_cluster:
            ray.shutdown()

    def _start_actor(self) -> Any:
        setup = self._setup
        if not setup.measurement.threads:
            measurement = dataclasses.replace(setup.measurement, threads=max(1, math.floor(self._cpus)))
            setup = dataclasses.replace(setup, measurement=measurement)
        options = _Actor.options(num_cpus=self._cpus, num_gpus=self._settings.gpus)
        return options.remote(setup, self._settings.gpus)

    def _wait_until_ready(self) -> ModelDescription:
        """Return the first worker's description, starting it anew if it dies on the way."""
        for _ in range(MAX_ATTEMPTS):
            try:
                if self._settings.shared:
                    ray.get(self._actors[0].start.remote())  # as long as other jobs have the workers
                description: ModelDescription = ray.get(
                    self._actors[0].describe.remote(), timeout=self._settings.trial_timeout_s
                )
                return description
            except RayTaskError as error:
                raise _cause(error) from None
            except RayActorError as error:
                last = error
                self._actors[0] = self._start_actor()
            except GetTimeoutError:
                raise PoolError(
                    f"no worker was ready within {self._settings.trial_timeout_s:g} s; "
                    "raise workers.trial_timeout_s or ask for fewer resources"
                ) from None
        raise PoolError(f"a worker died {MAX_ATTEMPTS} times while loading the task: {_one_line(last)}")

    def _dispatch(self) -> None:
        busy = self._busy()
        for slot in range(self.slots):
            if slot not in busy and self._queue:
                candidate, attempts = self._queue.popleft()
                reference = self._actors[slot].measure.remote(candidate)
                deadline = time.monotonic() + self._settings.trial_timeout_s
                self._running[reference] = _Running(
                    slot=slot, candidate=candidate, attempts=attempts, deadline=deadline
                )

    def _collect(self, reference: Any) -> list[Outcome]:
        running = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except RayActorError as error:
            return self._lost(running, _crash_cause(error), _one_line(error))
        except RayTaskError as error:
            # The actor could not even build its evaluator: a fresh one may, for example after an outage.
            return self._lost(running, FailureCause.ERROR, _one_line(_cause(error)))
        except RayError as error:
            raise _cluster_lost(error) from error
        return [self._outcome(running, result)]

    def _expire(self) -> list[Outcome]:
        now = time.monotonic()
        outcomes = []
        for reference in [r for r, running in self._running.items() if running.deadline < now]:
            running = self._running.pop(reference)
            message = f"no result within workers.trial_timeout_s = {self._settings.trial_timeout_s:g} s"
            outcomes += self._lost(running, FailureCause.TIMEOUT, message)
        return outcomes

    def _lost(self, running: _Running, cause: FailureCause, message: str) -> list[Outcome]:
        """Replace the worker; try its candidate again, or give it up."""
        self._replace(running.slot)
        if running.attempts < MAX_ATTEMPTS:
            # First in line, so that no candidate waits behind all others for its next attempt.
            self._queue.appendleft((running.candidate, running.attempts + 1))
            return []
        return [self._outcome(running, Failure(cause=cause, message=message, attempts=running.attempts))]

    def _replace(self, slot: int) -> None:
        ray.kill(self._actors[slot])
        self._actors[slot] = self._start_actor()

    def _busy(self) -> set[int]:
        return {running.slot for running in self._running.values()}

    def _retire(self) -> None:
        """End the workers that are too many and have nothing to do."""
        for slot in [slot for slot in self._actors if slot >= self.slots and slot not in self._busy()]:
            ray.kill(self._actors.pop(slot))

    def _outcome(self, running: _Running, result: Measurement | Failure) -> Outcome:
        worker = f"ray:{self._actors[running.slot]._actor_id.hex()[:12]}"
        return Outcome(candidate=running.candidate, result=result, attempts=running.attempts, worker=worker)


def _connect(settings: PoolSettings) -> bool:
    """Join or start a cluster; return whether this process has to shut it down."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
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
            f"cannot reach Ray at {settings.ray_address!r}: {_one_line(error)}; "
            "start the cluster, or set workers.ray_address to local"
        ) from error
    return True


def _capacity(settings: PoolSettings) -> Capacity:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    # A private cluster has more CPUs than the machine if its user wants more workers than that.
    private = settings.ray_address == "local"
    machines = [float(os.cpu_count() or 1)] if private else [node["CPU"] for node in nodes if node.get("CPU")]
    return Capacity(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        machine_cpus=min(machines, default=1.0),
    )


def _check_resources(settings: PoolSettings, capacity: Capacity, cpus: float) -> None:
    """Refuse a request the cluster can never meet; Ray itself would wait for ever."""
    count = 1 if settings.shared else settings.count
    for name, each, have in (("CPUs", cpus, capacity.cpus), ("GPUs", settings.gpus, capacity.gpus)):
        if each * count > have:
            raise PoolError(
                f"{count} workers with {each:g} {name} each need {each * count:g} {name}, but the Ray cluster "
                f"has {have:g}; lower workers.count or workers.{name.lower()}, or add nodes"
            )


def _ready(references: list[Any], timeout_s: float) -> list[Any]:
    """Return all that are ready, as soon as one is or the time is over."""
    with _cluster_errors():
        if ray.wait(references, num_returns=1, timeout=timeout_s)[0]:
            return list(ray.wait(references, num_returns=len(references), timeout=0)[0])
    return []


@contextmanager
def _cluster_errors() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        raise _cluster_lost(error) from error


def _cluster_lost(error: RayError) -> ClusterLostError:
    return ClusterLostError(f"the Ray cluster is gone: {_one_line(error)}; start it and resume the job")


def _cause(error: RayTaskError) -> AutotuneError:
    cause = error.cause
    return cause if isinstance(cause, AutotuneError) else PoolError(f"a worker could not start: {_one_line(cause)}")


def _crash_cause(error: RayActorError) -> FailureCause:
    text = str(error).lower()
    out_of_memory = "out-of-memory" in text or "ran out of memory" in text or "memory monitor" in text
    return FailureCause.OUT_OF_MEMORY if out_of_memory else FailureCause.CRASH


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
