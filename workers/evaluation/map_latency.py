"""Latency of maps and of their layers, and the working memory of a pass."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from search_spaces.layer import Layer
from workers.backends.base import Deployed
from workers.device.threads import timeable
from workers.measurement import LatencySamples, Workload
from workers.progress import Report, silent
from workers.setup import MeasurementSettings
from workers.task import Timed
from workers.timing import clock, latency
from workers.timing.device_lock import DeviceLock
from workers.timing.latency import Contender


class MapLatency:
    """Times maps of a deployed model, with exclusive use of the device."""

    def __init__(
        self,
        deployed: Deployed,
        workloads: Mapping[int, Mapping[Workload, Timed]],
        settings: MeasurementSettings,
        lock: DeviceLock,
        report: Report = silent,
        *,
        reference: Deployed | None = None,
    ) -> None:
        """Time maps of a deployed model.

        Args:
            deployed: the model.
            workloads: batch size -> the workloads that can be timed at it.
            settings: how to time them.
            lock: the lock of the device that the model runs on.
            report: gets every round.
            reference: the same model on the backend whose full precision maps are compared with; None is ``deployed``.
        """
        self._deployed, self._workloads, self._settings = deployed, workloads, settings
        self._reference = reference or deployed
        self._lock, self._report = lock, report
        self._first = next(iter(workloads.values()))
        self._clock = clock.clock_of(lock.device)
        #: Seconds of all forward passes.
        self.forward_seconds = 0.0

    def of(
        self,
        choices: Mapping[str, str],
        *,
        only: Sequence[Workload] | None = None,
        final: bool = False,
        hopeless: float = math.inf,
        budget_s: float = math.inf,
    ) -> tuple[LatencySamples, ...]:
        """Return the latency of a map in every workload and batch size, each interleaved with full precision.

        Args:
            choices: layer name -> choice name.
            only: the workloads to time, in this order; None times the forward pass and those of the settings.
            final: whether to time at full fidelity: up to the final passes, for half as wide intervals.
            hopeless: latency ratio to full precision above which timing may stop early.
            budget_s: seconds after which timing a workload ends, once the least rounds are made.
        """
        first, *others = self._workloads
        names = dict.fromkeys((Workload.FORWARD, *self._settings.workloads) if only is None else only)
        wanted = [(name, first) for name in names]
        wanted += [(Workload.FORWARD, size) for size in others if Workload.FORWARD in names]
        timings: list[LatencySamples] = []
        with self._lock.exclusive(), torch.inference_mode():
            for workload, size in wanted:
                # Only the first one decides whether a map is hopeless.
                timings.append(
                    self._latency_in(workload, size, choices, final, math.inf if timings else hopeless, budget_s)
                )
                if timings[-1].gave_up:
                    break
        return tuple(timings)

    def _latency_in(
        self,
        workload: Workload,
        size: int,
        choices: Mapping[str, str],
        final: bool,
        hopeless: float,
        budget_s: float,
    ) -> LatencySamples:
        timed, settings = self._workloads[size][workload], self._settings
        half_width = settings.half_width
        if final and half_width is not None:
            half_width /= 2.0
        return latency.measure(
            self._contender(self._deployed, timed, choices),
            self._contender(self._reference, timed, {}),
            batch_size=size,
            repeats=settings.final_repeats if final else settings.repeats,
            warmup_s=settings.warmup_s,
            half_width=half_width,
            budget_s=budget_s,
            hopeless=hopeless,
            workload=workload,
            time_pass=self._time_pass,
            report=self._report,
        )

    def _contender(self, deployed: Deployed, timed: Timed, choices: Mapping[str, str]) -> Contender:
        install = functools.partial(deployed.apply, choices)
        install()
        return Contender(install=install, run=_timeable(deployed, timed))

    def _time_pass(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        elapsed_ms = clock.time_ms(run, self._clock)
        self.forward_seconds += time.perf_counter() - start
        return elapsed_ms

    def of_layers(
        self, layers: Sequence[Layer], choices: Mapping[str, Sequence[str]]
    ) -> tuple[dict[tuple[str, str], float], float]:
        """Return (layer, choice) -> ms inside the layer in one pass, and the ms of a full-precision pass."""
        with self._lock.exclusive(), torch.inference_mode():
            forward = self._first[Workload.FORWARD]
            run = _timeable(self._deployed, forward)
            return self._deployed.layer_latencies(layers, choices, run, self._report)

    def working_bytes(self) -> int:
        """Return the peak of live bytes in one run of any workload, weights excluded."""
        with torch.inference_mode(), self._lock.shared():
            start = time.perf_counter()
            peaks = [
                # Memory that a workload keeps between its runs, such as a cache, counts as working memory.
                self._deployed.working_bytes(functools.partial(prepare_and_run, timed, self._deployed.model))
                for timed in self._first.values()
            ]
            self.forward_seconds += time.perf_counter() - start
        return max(peaks)


def _timeable(deployed: Deployed, timed: Timed) -> Callable[[], object]:
    """Return a pass of the deployed model with the installed map, prepared and fit for timing."""
    model = deployed.model
    state = timed.prepare(model)
    return timeable(model, lambda: timed.run(model, state))


def prepare_and_run(timed: Timed, model: nn.Module) -> None:
    """Run a workload once, from the beginning."""
    timed.run(model, timed.prepare(model))
