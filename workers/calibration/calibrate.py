"""The calibration pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from search_spaces.tensors import layer_input
from workers.backends.rounding.bias_correction import has_correction
from workers.calibration.histogram import MOST_COUNTED, RangeHistogram
from workers.calibration.means import ChannelMeans
from workers.calibration.moments import MomentSketch
from workers.calibration.observers import observed_range, summary
from workers.calibration.smoothing import ChannelStatistics, smoothing
from workers.errors import CalibrationError
from workers.progress import Count, Report, Stage, silent
from workers.setup import Calibration, CalibrationSettings, ObserverKind
from workers.task import Batch, Split, Task, splits


def calibrated(
    task: Task,
    model: nn.Module,
    layers: Sequence[Layer],
    settings: CalibrationSettings,
    weight_bits: Mapping[str, int],
    report: Report = silent,
) -> Calibration:
    """Calibrate the layers' inputs as a job's settings require, on the task's calibration batches.

    ``weight_bits`` maps layer names to bits of int8 weights. If the task has shifted data, the result includes the
    share of it that the ranges clip. ``report`` gets every batch of every pass.
    """
    batches = task.calibration()
    shifted = task.evaluation(Split.SHIFTED) if Split.SHIFTED in splits(task) else None
    passes = 1 + settings.smoothing + settings.moments
    count = Count(report, Stage.CALIBRATING, passes * len(batches) + len(shifted or ()))

    def forward(model: nn.Module, batch: Batch) -> torch.Tensor:
        outputs = task.forward(model, batch)
        count.advance()
        return outputs

    found = calibrate(model, layers, batches, forward, settings)
    if settings.smoothing:
        found = with_smoothing(found, model, layers, batches, forward, weight_bits)
    if settings.moments:
        found = with_moments(found, model, layers, batches, forward)
    if shifted is None:
        return found
    return replace(found, clipped=clipped_shares(model, found.ranges, shifted, forward))


def calibrate(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
    settings: CalibrationSettings,
) -> Calibration:
    """Return range and histogram of the input of every layer that may be quantized, from one pass over ``batches``.

    Calibration observes the full-precision model, so ranges do not depend on the choices of other layers.
    Embeddings have no range, because their inputs are indices, and neither has a layer that no batch ran. With bias
    correction, ranges include channel means.

    Raises:
        CalibrationError: if no layer received any data, or an input is not finite.
    """
    start = time.perf_counter()
    # Other observers weigh the tails, for which every value counts.
    most = MOST_COUNTED if settings.observer is ObserverKind.MINMAX else None
    histograms = {
        layer.name: RangeHistogram(most) for layer in layers if not layer.kind.looks_up and layer.frozen_reason is None
    }
    correctable = [layer for layer in layers if settings.bias_correction and has_correction(layer)]
    means = {layer.name: ChannelMeans(layer) for layer in correctable if layer.name in histograms}
    observers = {name: _observer(name, histogram, means.get(name)) for name, histogram in histograms.items()}
    with _observed(model, observers), torch.inference_mode():
        samples = sum(len(forward(model, batch)) for batch in batches)
    if histograms and not any(histogram.total for histogram in histograms.values()):
        raise CalibrationError(
            f"calibration needs data, but no layer received any in {len(batches)} batches; give the task calibration "
            "batches that run the model"
        )
    # A layer that no batch ran, such as an idle expert, has no range; ``Calibration.refuses`` says what that means.
    histograms = {name: histogram for name, histogram in histograms.items() if histogram.total}
    ranges = {name: observed_range(histogram, settings) for name, histogram in histograms.items()}
    ranges |= {name: replace(ranges[name], means=seen.means()) for name, seen in means.items() if name in ranges}
    summaries = {name: summary(histogram, ranges[name]) for name, histogram in histograms.items()}
    return Calibration(ranges=ranges, histograms=summaries, samples=samples, seconds=time.perf_counter() - start)


def with_smoothing(
    calibration: Calibration,
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
    weight_bits: Mapping[str, int] = MappingProxyType({}),
) -> Calibration:
    """Return ``calibration`` with smoothing factors for linear layers' inputs, from another pass over ``batches``.

    ``weight_bits`` maps layer names to bits of int8 weights; absent layers use 8.
    """
    start = time.perf_counter()
    seen = _linear_inputs(ChannelStatistics, calibration, model, layers, batches, forward)
    ranges = dict(calibration.ranges)
    for name, statistics in seen.items():
        found = smoothing(statistics, model.get_submodule(name).get_parameter("weight"), weight_bits.get(name, 8))
        ranges[name] = replace(ranges[name], smoothing=found)
    return replace(calibration, ranges=ranges, smoothing_seconds=time.perf_counter() - start)


def with_moments(
    calibration: Calibration,
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
) -> Calibration:
    """Return ``calibration`` with second moments of linear layers' inputs, from another pass over ``batches``."""
    start = time.perf_counter()
    seen = _linear_inputs(MomentSketch, calibration, model, layers, batches, forward)
    found = {name: replace(calibration.ranges[name], moments=sketch.moments()) for name, sketch in seen.items()}
    return replace(calibration, ranges={**calibration.ranges, **found}, moments_seconds=time.perf_counter() - start)


def clipped_shares(
    model: nn.Module,
    ranges: Mapping[str, ActivationRange],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
) -> dict[str, float]:
    """Return layer name -> share of its inputs outside its range, from one full-precision pass over ``batches``.

    A layer that does not run clips nothing; nan counts as outside.
    """
    counts = {name: _Clipping() for name in ranges}
    observers = {name: _clipping_counter(ranges[name], counts[name]) for name in ranges}
    with _observed(model, observers), torch.inference_mode():
        for batch in batches:
            forward(model, batch)
    return {name: count.outside / max(1, count.total) for name, count in counts.items()}


class _Statistics(Protocol):
    """Accumulates the inputs of one layer, shape ``(..., channels)``, fp32."""

    def add(self, x: torch.Tensor) -> None: ...


_Seen = TypeVar("_Seen", bound=_Statistics)


def _linear_inputs(
    statistics: Callable[[int], _Seen],
    calibration: Calibration,
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
) -> dict[str, _Seen]:
    """Return layer name -> statistics of its inputs, for linear layers with a range, from a pass over ``batches``."""
    seen = {
        layer.name: statistics(layer.weight_shape[1])
        for layer in layers
        if layer.kind is LayerKind.LINEAR and layer.name in calibration.ranges
    }
    observers = {name: _adder(of_layer) for name, of_layer in seen.items()}
    with _observed(model, observers), torch.inference_mode():
        for batch in batches:
            forward(model, batch)
    return seen


#: Gets each input of a layer.
_Observer = Callable[[torch.Tensor], None]


@contextmanager
def _observed(model: nn.Module, observers: Mapping[str, _Observer]) -> Iterator[None]:
    """Pass the inputs of the named layers to their observers while the context is open."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_input_hook(observer), with_kwargs=True)
        for name, observer in observers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(observer: _Observer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    return lambda _, args, kwargs: observer(layer_input(args, kwargs))


@dataclass(slots=True)
class _Clipping:
    """Number of values seen, and of those outside the range."""

    total: int = 0
    outside: int = 0


def _clipping_counter(known: ActivationRange, counts: _Clipping) -> _Observer:
    def observe(x: torch.Tensor) -> None:
        inside = (x >= known.low) & (x <= known.high)
        counts.total += inside.numel()
        counts.outside += inside.numel() - int(inside.sum())

    return observe


def _adder(statistics: _Statistics) -> _Observer:
    return lambda x: statistics.add(x.to("cpu", torch.float32))


def _observer(name: str, histogram: RangeHistogram, means: ChannelMeans | None) -> _Observer:
    def observe(x: torch.Tensor) -> None:
        values = x.to("cpu", torch.float32)
        try:
            histogram.add(values)
        except ValueError:
            raise CalibrationError(
                f"calibration needs finite inputs, but layer {name!r} received nan or inf; look for overflow upstream"
            ) from None
        if means is not None:
            means.add(values)

    return observe
