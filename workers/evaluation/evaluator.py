"""Measure candidates: one ``Evaluator`` holds the model and its prepared layers for a whole job."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import nn

from search_spaces.choice import FULL_PRECISION
from search_spaces.discovery import discover, skipped, with_latency_shapes
from search_spaces.layer import Layer
from search_spaces.quantization_map import QuantizationMap
from workers.backends import BACKENDS, build_backend
from workers.backends.base import Backend
from workers.calibration.calibrate import calibrated
from workers.candidate import Candidate
from workers.device import environment, memory
from workers.device.placement import placed
from workers.errors import BackendError
from workers.evaluation.deployment import Deployment
from workers.evaluation.map_latency import MapLatency, prepare_and_run
from workers.evaluation.map_quality import MapQuality
from workers.evaluation.map_recovery import Deploy, recovered, with_learned
from workers.evaluation.soundness import check_full_precision, without_uncalled
from workers.measurement import Measurement, Workload
from workers.model.attention import unroll_attention
from workers.model.full_precision import identified_model
from workers.model.skeleton import sharing_weights
from workers.progress import Report, Stage, Step, Throttled, silent
from workers.recovered import Recovered, RecoverySettings
from workers.recovery.learned import LearnedLayer
from workers.sensitivity.estimate import Sensitivity, estimate
from workers.sensitivity.parts import small_part
from workers.setup import (
    BackendDescription,
    Calibration,
    KnownKernels,
    LayerProbe,
    ModelDescription,
    Probes,
    WorkerSetup,
)
from workers.task import Batch, Split, Timed, example_batches, passes_over, splits, workloads
from workers.tasks import build_task, load_task_file
from workers.timing.device_lock import DeviceLock

#: Samples on which full precision must repeat itself.
_CHECKED_SAMPLES = 2


class Evaluator:
    """Everything one worker needs to measure maps of one job.

    The constructor loads the model, discovers its layers, calibrates them unless the setup contains ranges, and deploys
    the model on every backend of the setup.
    """

    def __init__(self, setup: WorkerSetup, report: Report = silent) -> None:
        """Get ready for a job; ``report`` gets the steps of this and of every later call, at most four a second."""
        start = time.perf_counter()
        self._report = report = Throttled(report)
        report(Step(stage=Stage.LOADING))
        memory.keep()
        if setup.task_file is not None:
            load_task_file(setup.task_file)
        torch.set_num_threads(setup.measurement.threads or environment.usable_cores())
        backend, others = _backends(setup)
        self._lock = DeviceLock(backend.device, report)
        self._task = placed(build_task(setup.task, setup.task_parameters), backend.device)
        model, model_fingerprint = identified_model(self._task)
        batches = example_batches(self._task)
        first_batch = batches[0]
        fused = unroll_attention(model, lambda m: self._task.forward(m, first_batch))
        skipped_modules = skipped(model) | fused
        timed = {size: workloads(self._task, size) for size in setup.measurement.batch_sizes}
        report(Step(stage=Stage.CHECKING))
        check_full_precision(self._task, model, small_part(self._task, model, first_batch, _CHECKED_SAMPLES))
        layers = self._layers(model, batches, timed)
        bits = setup.known.weight_bits or {layer.name: backend.int8_weight_bits(layer) for layer in layers}
        calibration = (
            calibrated(self._task, model, layers, setup.calibration, bits, report)
            if setup.ranges is None
            else Calibration(ranges=setup.ranges, samples=0, seconds=0.0)
        )
        self._deploy = deploy = functools.partial(
            Deployment,
            task=self._task,
            layers=layers,
            calibration=calibration,
            workloads=timed,
            settings=setup.measurement,
            lock=self._lock,
            report=report,
            cache_bytes=None if setup.cache_bytes is None else setup.cache_bytes // (1 + len(others)),
        )
        #: The model on the backend whose full precision maps are compared with.
        self.reference = deploy(backend, model=model, known=replace(setup.known, weight_bits=bits))
        self._deployments = {backend.name: self.reference}
        left_out = self._deploy_others(others, setup, model, functools.partial(deploy, reference=self.reference))
        # A quarter of the cache of prepared layers. A large model gets more, or probing would need too many passes.
        prepared = self.reference.prepared
        self._recorded_bytes = max(prepared.cache_bytes // 4, prepared.weight_bytes() // 16)
        #: Divergences that were estimated so far; backends round the same choice to the same numbers.
        self._estimated: Sensitivity | None = None
        first, *more = (deployment.description for deployment in self._deployments.values())
        #: Description of the model for the driver.
        self.description = ModelDescription(
            **{each.name: getattr(first, each.name) for each in fields(BackendDescription)},
            fingerprint=model_fingerprint,
            layers=layers,
            calibration=calibration,
            skipped=skipped_modules,
            waited_seconds=self._lock.waited_s,
            loading_seconds=time.perf_counter() - start - self._lock.waited_s,
            others={description.environment.backend: description for description in more},
            left_out=left_out,
        )
        memory.release()

    def _deploy_others(
        self, others: Sequence[Backend], setup: WorkerSetup, model: nn.Module, deploy: Callable[..., Deployment]
    ) -> dict[str, str]:
        """Deploy the model on further backends; return name -> why, for those that cannot run it."""
        left_out = {}
        for other in others:
            known = setup.others.get(other.name, KnownKernels())
            try:
                self._deployments[other.name] = deploy(other, model=sharing_weights(model), known=known)
            except BackendError as error:
                left_out[other.name] = str(error)
        return left_out

    def learn(self, quantization: QuantizationMap, learned: Mapping[str, LearnedLayer], backend: str = "") -> None:
        """Run the maps of a backend with what the layers of one of them learned; full precision stays as it is.

        Raises:
            MapError: if the weights were learned for another model.
        """
        deployment = self._learning(self.on(backend))(quantization, learned)
        self._deployments[deployment.backend.name] = deployment

    def _learning(self, plain: Deployment) -> Deploy:
        """Return what deploys the model as ``plain`` does, but with learned weights."""
        return functools.partial(with_learned, self._deploy, self.reference, self.description.calibration, plain)

    @property
    def quality(self) -> MapQuality:
        """Quality of maps on the reference's backend."""
        return self.reference.quality

    @property
    def latency(self) -> MapLatency:
        """Latency of maps on the reference's backend."""
        return self.reference.latency

    def on(self, backend: str) -> Deployment:
        """Return the model on a backend of the setup; empty means the reference's.

        Raises:
            BackendError: if the model does not run there.
        """
        if not backend:
            return self.reference
        if backend not in self._deployments:
            why = self.description.left_out.get(backend, "it is not among the backends of the job")
            raise BackendError(f"the model does not run on the backend {backend}: {why}")
        return self._deployments[backend]

    def measure(self, candidate: Candidate) -> Measurement:
        """Measure one candidate: quality first, then latency unless quality rules the candidate out."""
        start, waited_before_s = time.perf_counter(), self._lock.waited_s
        deployment = self.on(candidate.backend)
        quality, latency, deployed = deployment.quality, deployment.latency, deployment.deployed
        quality.forward_seconds = latency.forward_seconds = 0.0
        at_start = deployment.environment()
        accuracy, divergence = quality.of(candidate.choices, Split.EVALUATION)
        ruled_out = not candidate.within_limit(Split.EVALUATION, accuracy, divergence)
        shifted = None
        if Split.SHIFTED in splits(self._task) and not ruled_out:
            shifted = quality.of(candidate.choices, Split.SHIFTED)
            ruled_out = not candidate.within_limit(Split.SHIFTED, *shifted)
        hopeless = candidate.slowest_hopeful(accuracy, divergence)
        timings = (
            ()
            if ruled_out
            else latency.of(
                candidate.choices,
                only=candidate.workloads,
                final=candidate.final,
                hopeless=hopeless,
                budget_s=candidate.timing_s,
            )
        )
        working = None if ruled_out else latency.working_bytes()
        weight_bytes, session_seconds = deployed.weight_bytes(), deployed.session_seconds
        held_out = quality.held_out_accuracies(candidate.choices) if candidate.final else None
        waited_s = self._lock.waited_s - waited_before_s
        return Measurement(
            accuracy=accuracy,
            divergence=divergence,
            weight_bytes=weight_bytes,
            latency=timings,
            working_bytes=working,
            shifted=shifted,
            held_out=held_out,
            held_out_missing=quality.held_out_missing if candidate.final else None,
            seconds=time.perf_counter() - start - waited_s,
            waited_seconds=waited_s,
            forward_seconds=quality.forward_seconds + latency.forward_seconds,
            session_seconds=session_seconds,
            environment=at_start,
        )

    def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
        """Return the predicted effects of every layer and choice, without measuring a map for each of them.

        Args:
            budget_s: seconds that sensitivities may take; fewer samples make them less exact.
            backend: where; empty means on the reference's backend.
        """
        start, waited_before_s = time.perf_counter(), self._lock.waited_s
        deployment = self.on(backend)
        sensitivity = self.sensitivity(budget_s, backend)
        latency_ms, pass_ms = deployment.layer_latencies()
        probes = tuple(
            LayerProbe(
                layer=layer,
                choice=choice,
                divergence=sensitivity.divergence.get((layer, choice), 0.0),
                latency_ms=elapsed,
            )
            for (layer, choice), elapsed in latency_ms.items()
        )
        waited_s = self._lock.waited_s - waited_before_s
        return Probes(
            layers=probes,
            pass_ms=pass_ms,
            estimator=sensitivity.estimator,
            samples=sensitivity.samples,
            cut=sensitivity.cut,
            seconds=time.perf_counter() - start - waited_s,
            waited_seconds=waited_s,
        )

    def sensitivity(self, budget_s: float = math.inf, backend: str = "") -> Sensitivity:
        """Return the predicted divergence of every layer with each of its choices, within so many seconds.

        What was estimated for another backend is not estimated again.
        """
        deployment, before = self.on(backend), self._estimated
        known = before.divergence if before else {}
        wanted = {
            layer: [name for name in names if name != FULL_PRECISION.name and (layer, name) not in known]
            for layer, names in deployment.legal().items()
        }
        if before is not None and not any(wanted.values()):
            return before
        with self._lock.shared():
            found = estimate(
                self._task,
                deployment.prepared,
                {layer: names for layer, names in wanted.items() if names or before is None},
                self._task.calibration(),
                most_bytes=self._recorded_bytes,
                budget_s=budget_s,
                report=self._report,
            )
        memory.release()
        self._estimated = replace(found, divergence={**known, **found.divergence})
        return self._estimated

    def recover(self, choices: Mapping[str, str], backend: str, settings: RecoverySettings) -> Recovered:
        """Return a map of a backend with learned weights, and its quality; see ``map_recovery.recovered``."""
        plain = self.on(backend)
        found = recovered(self._task, choices, plain, self._learning(plain), settings, self._lock, self._report)
        memory.release()
        return found

    def _layers(
        self, model: nn.Module, batches: Sequence[Batch], workloads: Mapping[int, Mapping[Workload, Timed]]
    ) -> tuple[Layer, ...]:
        """Return the quantizable layers, with their input shapes in the passes whose latency is measured."""
        first, *more = passes_over(self._task, batches)
        layers = discover(model, first, more)
        layers = without_uncalled(model, layers, [functools.partial(run, model) for run in (first, *more)])
        passes = [
            functools.partial(prepare_and_run, timed, model)
            for of_size in workloads.values()
            for workload, timed in of_size.items()
            # A whole answer or sample only repeats the shapes of other workloads.
            if workload not in (Workload.REQUEST, Workload.SAMPLING)
        ]
        return with_latency_shapes(model, layers, passes)


def _backends(setup: WorkerSetup) -> tuple[Backend, list[Backend]]:
    """Return the backend of the reference, and the others on its device.

    Raises:
        BackendError: if a backend that the setup names is unknown, cannot run here or needs another device.
    """
    first = build_backend(setup.backend)
    others = [build_backend(name) for name in setup.others]
    for other in others:
        if other.device != first.device:
            raise BackendError(
                f"all backends of a job run on one device, but {first.name} runs on {first.device} and {other.name} on "
                f"{other.device}; submit a job for each"
            )
    if setup.all_backends:
        every = [build() for build in BACKENDS.values()]
        others = [other for other in every if other.device == first.device and other.unavailable() is None]
    return first, [other for other in others if other.name != first.name]
