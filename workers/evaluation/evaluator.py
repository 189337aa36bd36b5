"""Measure candidates: one ``Evaluator`` holds the model and its prepared layers for a whole job."""

import functools
import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION
from search_spaces.discovery import discover, skipped, with_latency_shapes
from search_spaces.layer import Layer
from workers.backends import build_backend
from workers.calibration.calibrate import calibrated
from workers.candidate import Candidate
from workers.device import environment, memory
from workers.device.placement import placed
from workers.evaluation.map_latency import MapLatency, prepare_and_run
from workers.evaluation.map_quality import MapQuality
from workers.evaluation.soundness import check_full_precision, without_uncalled
from workers.measurement import Environment, Measurement, Workload
from workers.model.attention import unroll_attention
from workers.model.full_precision import identified_model
from workers.model.prepared import PreparedModel
from workers.progress import Report, Stage, Step, Throttled, silent
from workers.sensitivity.estimate import Sensitivity, estimate
from workers.sensitivity.parts import small_part
from workers.setup import Calibration, LayerProbe, ModelDescription, Probes, WorkerSetup
from workers.task import Batch, Split, Timed, example_batches, passes_over, splits, workloads
from workers.tasks import build_task, load_task_file
from workers.timing.device_lock import DeviceLock

#: Samples on which full precision must repeat itself.
_CHECKED_SAMPLES = 2


class Evaluator:
    """Everything one worker needs to measure maps of one job.

    The constructor loads the model, discovers its layers, calibrates them unless the setup contains ranges, and deploys
    the model.
    """

    def __init__(self, setup: WorkerSetup, report: Report = silent) -> None:
        """Get ready for a job; ``report`` gets the steps of this and of every later call, at most four a second."""
        start = time.perf_counter()
        self._report = report = Throttled(report)
        report(Step(stage=Stage.LOADING))
        memory.keep()
        if setup.task_file is not None:
            load_task_file(setup.task_file)
        self._settings = setup.measurement
        torch.set_num_threads(self._settings.threads or environment.usable_cores())
        self._backend = build_backend(setup.backend)
        self._lock = DeviceLock(self._backend.device, report)
        self._task = placed(build_task(setup.task, setup.task_parameters), self._backend.device)
        model, model_fingerprint = identified_model(self._task)
        batches = example_batches(self._task)
        first_batch = batches[0]
        fused = unroll_attention(model, lambda m: self._task.forward(m, first_batch))
        skipped_modules = skipped(model) | fused
        workloads = {size: self._workloads(size) for size in self._settings.batch_sizes}
        report(Step(stage=Stage.CHECKING))
        check_full_precision(self._task, model, small_part(self._task, model, first_batch, _CHECKED_SAMPLES))
        layers = self._layers(model, batches, workloads)
        bits = setup.weight_bits or {layer.name: self._backend.int8_weight_bits(layer) for layer in layers}
        calibration = (
            calibrated(self._task, model, layers, setup.calibration, bits, report)
            if setup.ranges is None
            else Calibration(ranges=setup.ranges, samples=0, seconds=0.0)
        )
        #: The layers in PyTorch; measurements use the deployed model.
        self._prepared = PreparedModel(
            model,
            layers,
            self._backend,
            calibration.ranges,
            cache_bytes=setup.cache_bytes,
            weight_bits=bits,
            kernels=setup.kernels,
        )
        # A quarter of the cache of prepared layers. A large model gets more, or probing would need too many passes.
        self._recorded_bytes = max(self._prepared.cache_bytes // 4, self._prepared.weight_bytes() // 16)
        self._deployed = self._backend.deploy(self._task, self._prepared, self._settings.batch_sizes)
        #: Quality and latency of maps of the deployed model.
        self.quality = MapQuality(self._task, self._deployed, self._lock, report)
        self.latency = MapLatency(self._deployed, workloads, self._settings, self._lock, report)
        #: Description of the model for the driver.
        self.description = ModelDescription(
            fingerprint=model_fingerprint,
            layers=layers,
            refusals=_refusals(self._prepared, calibration),
            layer_bytes=self._prepared.layer_bytes(),
            other_bytes=self._deployed.other_bytes(),
            calibration=calibration,
            environment=self._environment(),
            skipped=skipped_modules,
            weight_bits=bits,
            kernels=self._kernels(),
            workloads=tuple(name for name in next(iter(workloads.values())) if name is not Workload.FORWARD),
            waited_seconds=self._lock.waited_s,
            loading_seconds=time.perf_counter() - start - self._lock.waited_s,
        )
        memory.release()

    def measure(self, candidate: Candidate) -> Measurement:
        """Measure one candidate: quality first, then latency unless quality rules the candidate out."""
        start, waited_before_s = time.perf_counter(), self._lock.waited_s
        self.quality.forward_seconds = self.latency.forward_seconds = 0.0
        at_start = self._environment()
        accuracy, divergence = self.quality.of(candidate.choices, Split.EVALUATION)
        ruled_out = not candidate.within_limit(Split.EVALUATION, accuracy, divergence)
        shifted = None
        if Split.SHIFTED in splits(self._task) and not ruled_out:
            shifted = self.quality.of(candidate.choices, Split.SHIFTED)
            ruled_out = not candidate.within_limit(Split.SHIFTED, *shifted)
        hopeless = candidate.slowest_hopeful(accuracy, divergence)
        timings = (
            ()
            if ruled_out
            else self.latency.of(
                candidate.choices,
                only=candidate.workloads,
                final=candidate.final,
                hopeless=hopeless,
                budget_s=candidate.timing_s,
            )
        )
        working = None if ruled_out else self.latency.working_bytes()
        weight_bytes, session_seconds = self._deployed.weight_bytes(), self._deployed.session_seconds
        held_out = self.quality.held_out_accuracies(candidate.choices) if candidate.final else None
        waited_s = self._lock.waited_s - waited_before_s
        return Measurement(
            accuracy=accuracy,
            divergence=divergence,
            weight_bytes=weight_bytes,
            latency=timings,
            working_bytes=working,
            shifted=shifted,
            held_out=held_out,
            held_out_missing=self.quality.held_out_missing if candidate.final else None,
            seconds=time.perf_counter() - start - waited_s,
            waited_seconds=waited_s,
            forward_seconds=self.quality.forward_seconds + self.latency.forward_seconds,
            session_seconds=session_seconds,
            environment=at_start,
        )

    def probe(self, budget_s: float = math.inf) -> Probes:
        """Return the predicted effects of every layer and choice, without measuring a map for each of them.

        Args:
            budget_s: seconds that sensitivities may take; fewer samples make them less exact.
        """
        start, waited_before_s = time.perf_counter(), self._lock.waited_s
        sensitivity = self.sensitivity(budget_s)
        latency_ms, pass_ms = self.layer_latencies()
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

    def sensitivity(self, budget_s: float = math.inf) -> Sensitivity:
        """Return the predicted divergence of every layer with each of its choices, within so many seconds."""
        quantized = {
            layer: [name for name in names if name != FULL_PRECISION.name] for layer, names in self._legal().items()
        }
        with self._lock.shared():
            found = estimate(
                self._task,
                self._prepared,
                quantized,
                self._task.calibration(),
                most_bytes=self._recorded_bytes,
                budget_s=budget_s,
                report=self._report,
            )
        memory.release()
        return found

    def layer_latencies(self) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer, choice) -> ms inside the layer in one pass, and the ms of a full-precision pass."""
        return self.latency.of_layers(self.description.layers, self._legal())

    def _legal(self) -> dict[str, list[str]]:
        """Return layer name -> names of the choices it can take, including full precision."""
        return {
            layer.name: [name for name in CHOICES if name not in self.description.refusals[layer.name]]
            for layer in self.description.layers
            if layer.frozen_reason is None
        }

    def _workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        found = workloads(self._task, batch_size)
        # Another runtime only runs the forward pass; a task cannot pass its cache back to that runtime.
        return found if self._backend.runs_modules else {Workload.FORWARD: found[Workload.FORWARD]}

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

    def _kernels(self) -> dict[str, dict[str, str]]:
        with self._lock.exclusive():
            return self._prepared.kernels(self._report)

    def _environment(self) -> Environment:
        backend = self._backend
        return environment.capture(
            hardware=backend.hardware(), backend=backend.name, device=backend.device, libraries=backend.libraries
        )


def _refusals(prepared: PreparedModel, calibration: Calibration) -> dict[str, dict[str, str]]:
    """Return layer name -> choice name -> why the backend refuses it or what calibration lacks for it."""
    found = {}
    for layer in prepared.layers:
        lacking = {name: calibration.refuses(layer, choice) for name, choice in CHOICES.items()}
        found[layer.name] = {name: why for name, why in lacking.items() if why} | prepared.refusals(layer.name)
    return found
