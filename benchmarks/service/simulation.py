"""A job with simulated workers: everything about its trials is real except the measuring."""

import heapq
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from autotune.client.actions import submit
from autotune.jobs.lifecycle import claimed, with_fields
from autotune.jobs.progress import Silent
from autotune.jobs.records import TrialKind
from autotune.jobs.spec import JobSpec
from autotune.search.backend_search import searches_of
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.loop import Search
from autotune.store.base import Store
from search_spaces.layer import Layer, LayerKind
from workers.candidate import Candidate, Outcome
from workers.measurement import Environment, LatencySamples, Measurement
from workers.setup import Calibration, ModelDescription

CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic")
ENVIRONMENT = Environment(hardware="simulated", backend="none", threads=1, load=0.0, versions={})
#: Timed passes of a candidate, and of the interleaved full precision.
PASSES, REFERENCE_PASSES = 100, 20


def description(layers: int) -> ModelDescription:
    """Return a model with this many layers, each of which may take every choice."""
    found = tuple(
        Layer(
            name=f"encoder.block.{i // 6}.layer.{i % 6}", kind=LayerKind.LINEAR, weight_shape=(64, 64), has_bias=True,
            weight_bytes=16640, input_shape=(1, 64), flops=8192, calls=1, order=i, group=f"g{i}",
        )
        for i in range(layers)
    )  # fmt: skip
    return ModelDescription(
        fingerprint="f" * 64,
        layers=found,
        refusals={layer.name: {} for layer in found},
        layer_bytes={layer.name: dict.fromkeys(CHOICES, 16640) for layer in found},
        other_bytes=0,
        calibration=Calibration(ranges={}, samples=1, seconds=0.0),
        environment=ENVIRONMENT,
    )


class SimulatedPool:
    """Workers that take ``trial_s`` seconds per candidate and make up its figures."""

    queues = True

    def __init__(self, slots: int, trial_s: float) -> None:
        self.slots = slots
        self._trial_s = trial_s
        self._queue: deque[Candidate] = deque()
        self._running: list[tuple[float, int, Candidate]] = []
        self._random = np.random.default_rng(0)

    def capacity(self) -> None:
        return None

    def submit(self, candidate: Candidate) -> None:
        self._queue.append(candidate)
        self._dispatch()

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._running:
            return []
        time.sleep(max(0.0, min(timeout_s, self._running[0][0] - time.monotonic())))
        done = []
        while self._running and self._running[0][0] <= time.monotonic():
            candidate = heapq.heappop(self._running)[2]
            done.append(candidate)
        self._dispatch()
        return [
            Outcome(candidate=candidate, result=self._measure(candidate), attempts=1, worker="simulated")
            for candidate in done
        ]

    def _dispatch(self) -> None:
        while self._queue and len(self._running) < self.slots:
            candidate = self._queue.popleft()
            heapq.heappush(self._running, (time.monotonic() + self._trial_s, candidate.number, candidate))

    def _measure(self, candidate: Candidate) -> Measurement:
        quantized = sum(choice != "fp32" for choice in candidate.choices.values()) / len(candidate.choices)
        samples = LatencySamples(
            batch_size=1,
            candidate_ms=(10 - 5 * quantized) * self._random.normal(1.0, 0.02, PASSES),
            reference_ms=10 * self._random.normal(1.0, 0.02, REFERENCE_PASSES),
        )
        return Measurement(
            accuracy=1 - 0.1 * quantized, divergence=1e-9 + 0.01 * quantized * self._random.random(), weight_bytes=1,
            latency=(samples,), working_bytes=None, held_out=None, seconds=self._trial_s,
            forward_seconds=self._trial_s, environment=ENVIRONMENT,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The parameters of the simulation."""

    trials: int
    layers: int = 200
    #: Workers, and the seconds each takes per trial.
    workers: int = 1
    trial_s: float = 0.0
    sampler: str = "random"


def simulate(store: Store, load: Load) -> float:
    """Search with simulated workers; return the trials per second, without the first and the last tenth."""
    spec = JobSpec.parse(
        {
            "name": f"{load.trials} trials of {load.layers} layers",
            "task": {"name": "simulated"},
            "objectives": ["latency_p50_ms", "divergence"],
            "search": {"trials": load.trials, "sampler": load.sampler, "choices": CHOICES},
        }
    )
    job = store.change_job(submit(store, spec, served=False).id, claimed("benchmark"))
    job = store.change_job(job.id, with_fields(job.epoch, description=description(load.layers)))
    pool = SimulatedPool(load.workers, load.trial_s)
    with Lease(store, job) as lease:
        Search(job, searches_of(job, pool.slots), pool, Silent(), lease, Ledger(store, job, Silent())).run()  # type: ignore[arg-type]
    finished = [trial.finished_at for trial in store.trials(job.id) if trial.kind is not TrialKind.FINAL]
    assert len(finished) == load.trials
    first, last = load.trials // 10, load.trials - load.trials // 10
    return (last - first) / (finished[last - 1] - finished[first - 1]).total_seconds()
