"""Measure candidates: one ``Evaluator`` holds the model and its prepared layers for a whole job."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION
from search_spaces.discovery import discover, skipped, with_latency_shapes
from search_spaces.layer import Layer
from workers import clock, device_lock, environment, latency, memory, quality
from workers.attention import unroll_attention
from workers.backends import build_backend
from workers.calibration.calibrate import calibrated
from workers.fingerprint import fingerprint
from workers.latency import Contender
from workers.measurement import Environment, LatencySamples, Measurement, Workload
from workers.placement import placed
from workers.pools.base import Candidate
from workers.prepared import PreparedModel
from workers.sensitivity.estimate import Sensitivity, estimate
from workers.setup import Calibration, LayerProbe, ModelDescription, Probes, WorkerSetup
from workers.task import Batch, Split, Timed, splits, workloads
from workers.tasks import build_task, load_task_file
from workers.threads import timeable


class Evaluator:
    """Everything one worker needs to measure maps of one job.

    Building it loads the model, finds its layers, calibrates (unless the setup brings ranges), and
    runs full precision once to have outputs to compare with.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        memory.keep()
        if setup.task_file is not None:
            load_task_file(setup.task_file)
        self._settings = setup.measurement
        torch.set_num_threads(self._settings.threads or environment.usable_cores())
        self._backend = build_backend(setup.backend)
        self._clock = clock.clock_of(self._backend.device)
        self._task = placed(build_task(setup.task, setup.task_parameters), self._backend.device)
        model = self._task.build_model().eval()
        first_batch = self._task.evaluation(Split.EVALUATION)[0]
        print_of_weights = fingerprint(model)
        fused = unroll_attention(model, lambda m: self._task.forward(m, first_batch))
        left_out = skipped(model) | fused
        self._timed = {size: self._workloads(size) for size in self._settings.batch_sizes}
        layers = self._layers(model, first_batch)
        bits = setup.weight_bits or {layer.name: self._backend.int8_weight_bits(layer) for layer in layers}
        calibration = (
            calibrated(self._task, model, layers, setup.calibration, bits)
            if setup.ranges is None
            else Calibration(ranges=setup.ranges, samples=0, seconds=0.0)
        )
        #: The layers in PyTorch; what is measured is the deployed model.
        self._prepared = PreparedModel(
            model, layers, self._backend, calibration.ranges, cache_bytes=setup.cache_bytes, weight_bits=bits
        )
        # A quarter of what prepared layers may have; not less of a large model, or passes would be too many.
        self._recorded_bytes = max(setup.cache_bytes // 4, self._prepared.weight_bytes() // 16)
        self._deployed = self._backend.deploy(self._task, self._prepared, self._settings.batch_sizes)
        self._forward_seconds = 0.0
        self._reference: dict[Split, tuple[torch.Tensor, float]] = {}
        #: What the driver is told about the model.
        self.description = ModelDescription(
            fingerprint=print_of_weights,
            layers=layers,
            refusals=_refusals(self._prepared, calibration),
            layer_bytes=self._prepared.layer_bytes(),
            other_bytes=self._deployed.other_bytes(),
            calibration=calibration,
            environment=self._environment(),
            skipped=left_out,
            weight_bits=bits,
            kernels=self._kernels(),
            workloads=tuple(name for name in self._first_timed() if name is not Workload.FORWARD),
        )
        memory.release()

    def measure(self, candidate: Candidate) -> Measurement:
        """Return the figures of one candidate: accuracy first, then latency unless that rules it out."""
        start = time.perf_counter()
        self._forward_seconds = 0.0
        at_start = self._environment()
        accuracy, divergence = self.quality(candidate.choices, Split.EVALUATION)
        ruled_out = _below(accuracy, candidate.accuracy_floor)
        shifted = None
        if Split.SHIFTED in splits(self._task) and not ruled_out:
            shifted = self.quality(candidate.choices, Split.SHIFTED)
            ruled_out = _below(shifted[0], candidate.shifted_floor)
        repeats = self._settings.final_repeats if candidate.final else self._settings.repeats
        hopeless = candidate.slowest_hopeful(accuracy, divergence)
        timings = () if ruled_out else self._latency(candidate.choices, repeats, hopeless)
        working = None if ruled_out else self._working_bytes()
        weight_bytes, session_seconds = self._deployed.weight_bytes(), self._deployed.session_seconds
        return Measurement(
            accuracy=accuracy,
            divergence=divergence,
            weight_bytes=weight_bytes,
            latency=timings,
            gave_up=not ruled_out and any(len(samples.candidate_ms) < repeats for samples in timings),
            working_bytes=working,
            shifted=shifted,
            held_out=self.held_out_accuracies(candidate.choices) if candidate.final else None,
            seconds=time.perf_counter() - start,
            forward_seconds=self._forward_seconds,
            session_seconds=session_seconds,
            environment=at_start,
        )

    def probe(self) -> Probes:
        """Return what to expect of every layer and choice, without measuring a map for each of them."""
        start = time.perf_counter()
        sensitivity = self.sensitivity()
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
        return Probes(
            layers=probes,
            pass_ms=pass_ms,
            estimator=sensitivity.estimator,
            samples=sensitivity.samples,
            seconds=time.perf_counter() - start,
        )

    def sensitivity(self) -> Sensitivity:
        """Return what every layer is expected to cost in divergence by each choice."""
        quantized = {
            layer: [name for name in names if name != FULL_PRECISION.name] for layer, names in self._legal().items()
        }
        with device_lock.shared(self._backend.device):
            return estimate(
                self._task, self._prepared, quantized, self._task.calibration(), most_bytes=self._recorded_bytes
            )

    def layer_latencies(self) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer, choice) -> ms inside the layer in one pass, and the ms of a full-precision pass."""
        with device_lock.exclusive(self._backend.device), torch.inference_mode():
            forward = self._first_timed()[Workload.FORWARD]
            batch = forward.prepare(self._deployed.model)
            run = self._timeable(forward, batch)
            return self._deployed.layer_latencies(self.description.layers, self._legal(), run)

    def _legal(self) -> dict[str, list[str]]:
        """Return layer name -> names of the choices it can take, full precision included."""
        return {
            layer.name: [name for name in CHOICES if name not in self.description.refusals[layer.name]]
            for layer in self.description.layers
            if layer.frozen_reason is None
        }

    def quality(self, choices: Mapping[str, str], split: Split) -> tuple[float, float]:
        """Return the accuracy and the mean divergence from full precision of a map on one split."""
        reference, _ = self._reference_of(split)
        self._deployed.apply(choices)
        outputs, accuracy = self._run(split)
        divergence = quality.divergence(outputs, reference, self._task.output_kind)
        return accuracy, float(divergence.mean())

    def held_out_accuracies(self, choices: Mapping[str, str]) -> tuple[float, float]:
        """Return the accuracy of a map and of full precision on held-out data."""
        return self.quality(choices, Split.HELD_OUT)[0], self.reference_accuracy(Split.HELD_OUT)

    def reference_accuracy(self, split: Split) -> float:
        """Return full precision's accuracy on one split."""
        return self._reference_of(split)[1]

    def _reference_of(self, split: Split) -> tuple[torch.Tensor, float]:
        """Return full precision's outputs and accuracy on one split, computed once."""
        if split not in self._reference:
            self._deployed.reset()
            self._reference[split] = self._run(split)
        return self._reference[split]

    def _run(self, split: Split) -> tuple[torch.Tensor, float]:
        """Return the outputs and the accuracy of the map that is installed."""
        start = time.perf_counter()
        with device_lock.shared(self._backend.device):
            outputs = quality.outputs(self._task, self._deployed.model, split)
            judged = quality.judged(self._task, self._deployed.model, outputs, split)
        self._forward_seconds += time.perf_counter() - start
        return outputs, self._task.accuracy(judged, split)

    def _latency(self, choices: Mapping[str, str], repeats: int, hopeless: float) -> tuple[LatencySamples, ...]:
        first, *others = self._timed
        wanted = [(name, first) for name in dict.fromkeys((Workload.FORWARD, *self._settings.workloads))]
        wanted += [(Workload.FORWARD, size) for size in others]
        timings: list[LatencySamples] = []
        with device_lock.exclusive(self._backend.device), torch.inference_mode():
            for workload, size in wanted:
                # What is hopeless is so in a forward pass at the first batch size.
                timings.append(self._latency_in(workload, size, choices, repeats, math.inf if timings else hopeless))
                if len(timings[-1].candidate_ms) < repeats:
                    break
        return tuple(timings)

    def _latency_in(
        self, workload: Workload, size: int, choices: Mapping[str, str], repeats: int, hopeless: float
    ) -> LatencySamples:
        timed = self._timed[size][workload]
        return latency.measure(
            self._contender(timed, lambda: self._deployed.apply(choices)),
            self._contender(timed, self._deployed.reset),
            batch_size=size,
            repeats=repeats,
            warmup_s=self._settings.warmup_s,
            hopeless=hopeless,
            workload=workload,
            time_pass=self._time_pass,
        )

    def _contender(self, timed: Timed, install: Callable[[], None]) -> Contender:
        install()
        state = timed.prepare(self._deployed.model)
        return Contender(install=install, run=self._timeable(timed, state))

    def _timeable(self, timed: Timed, state: Any) -> Callable[[], object]:
        return timeable(self._deployed.model, lambda: timed.run(self._deployed.model, state))

    def _time_pass(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        elapsed_ms = clock.time_ms(run, self._clock)
        self._forward_seconds += time.perf_counter() - start
        return elapsed_ms

    def _workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        found = workloads(self._task, batch_size)
        # Another runtime has the forward pass, and no cache that a task could hand back to it.
        return found if self._backend.runs_modules else {Workload.FORWARD: found[Workload.FORWARD]}

    def _first_timed(self) -> Mapping[Workload, Timed]:
        return next(iter(self._timed.values()))

    def _working_bytes(self) -> int:
        start = time.perf_counter()
        with torch.inference_mode(), device_lock.shared(self._backend.device):
            peaks = [
                # What a workload keeps between its runs, such as a cache, is memory at work too.
                self._deployed.working_bytes(functools.partial(_prepare_and_run, timed, self._deployed.model))
                for timed in self._first_timed().values()
            ]
        self._forward_seconds += time.perf_counter() - start
        return max(peaks)

    def _layers(self, model: nn.Module, first_batch: Batch) -> tuple[Layer, ...]:
        """Return the quantizable layers, with the shapes of their inputs where latency is measured."""
        layers = discover(model, lambda m: self._task.forward(m, first_batch))
        passes = [
            functools.partial(_prepare_and_run, timed, model)
            for of_size in self._timed.values()
            for workload, timed in of_size.items()
            # A whole answer or sample repeats what other workloads show.
            if workload not in (Workload.REQUEST, Workload.SAMPLING)
        ]
        return with_latency_shapes(model, layers, passes)

    def _kernels(self) -> dict[str, dict[str, str]]:
        with device_lock.exclusive(self._backend.device):
            return self._prepared.kernels()

    def _environment(self) -> Environment:
        return environment.capture(
            hardware=self._backend.hardware(),
            backend=self._backend.name,
            device=self._backend.device,
            libraries=self._backend.libraries,
        )


def _refusals(prepared: PreparedModel, calibration: Calibration) -> dict[str, dict[str, str]]:
    """Return layer name -> choice name -> why it is refused, by the backend or for what calibration lacks."""
    found = {}
    for layer in prepared.layers:
        lacking = {name: calibration.refuses(layer, choice) for name, choice in CHOICES.items()}
        found[layer.name] = {name: why for name, why in lacking.items() if why} | prepared.refusals(layer.name)
    return found


def _prepare_and_run(timed: Timed, model: nn.Module) -> None:
    timed.run(model, timed.prepare(model))


def _below(accuracy: float, floor: float | None) -> bool:
    return floor is not None and accuracy < floor
