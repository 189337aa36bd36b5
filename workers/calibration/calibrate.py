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
from workers.calibration.histogram import RangeHistogram
from workers.calibration.means import ChannelMeans
from workers.calibration.moments import MomentSketch
from workers.calibration.observers import observed_range, summary
from workers.calibration.smoothing import ChannelStatistics, smoothing
from workers.errors import CalibrationError
from workers.setup import Calibration, CalibrationSettings
from workers.task import Batch, Split, Task, splits


def calibrated(
    task: Task,
    model: nn.Module,
    layers: Sequence[Layer],
    settings: CalibrationSettings,
    weight_bits: Mapping[str, int],
) -> Calibration:
    """Return all that the settings of a job want to know of the layers' inputs, from the task's calibration batches.

    ``weight_bits`` has the bits of int8 weights by the name of their layer. What ranges clip on shifted data is added
    if the task has such data.
    """
    batches = task.calibration()
    found = calibrate(model, layers, batches, task.forward, settings)
    if settings.smoothing:
        found = with_smoothing(found, model, layers, batches, task.forward, weight_bits)
    if settings.moments:
        found = with_moments(found, model, layers, batches, task.forward)
    if Split.SHIFTED not in splits(task):
        return found
    shifted = task.evaluation(Split.SHIFTED)
    return replace(found, clipped=clipped_shares(model, found.ranges, shifted, task.forward))


def calibrate(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
    settings: CalibrationSettings,
) -> Calibration:
    """Return range and histogram of the input of every layer that may be quantized, from one pass over ``batches``.

    The full-precision model is observed, so ranges do not depend on what other layers will take.
    Embeddings have no range: their inputs are indices. If biases are corrected, ranges have the means of channels too.

    Raises:
        CalibrationError: if a layer saw no data, or an input is not finite.
    """
    start = time.perf_counter()
    histograms = {
        layer.name: RangeHistogram() for layer in layers if not layer.kind.looks_up and layer.frozen_reason is None
    }
    correctable = [layer for layer in layers if settings.bias_correction and has_correction(layer)]
    means = {layer.name: ChannelMeans(layer) for layer in correctable if layer.name in histograms}
    looks = {name: _observe(name, histogram, means.get(name)) for name, histogram in histograms.items()}
    with _watched(model, looks), torch.inference_mode():
        samples = sum(len(forward(model, batch)) for batch in batches)
    for name, histogram in histograms.items():
        if not histogram.total:
            raise CalibrationError(
                f"calibration needs data for every layer, but {name!r} saw none in {len(batches)} batches; "
                "give the task calibration batches that run the whole model"
            )
    ranges = {name: observed_range(histogram, settings) for name, histogram in histograms.items()}
    ranges |= {name: replace(ranges[name], means=seen.means()) for name, seen in means.items()}
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
    """Return ``calibration`` with factors that smooth inputs of linear layers, from another pass over ``batches``.

    ``weight_bits`` has the bits of int8 weights by the name of their layer, where they are not 8.
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
    """Return ``calibration`` with second moments of inputs of linear layers, from another pass over ``batches``."""
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
    """Return layer name -> share of its inputs outside its range, from one pass of full precision over ``batches``.

    A layer that does not run clips nothing; nan counts as outside.
    """
    counts = {name: _Clipping() for name in ranges}
    looks = {name: _count(ranges[name], counts[name]) for name in ranges}
    with _watched(model, looks), torch.inference_mode():
        for batch in batches:
            forward(model, batch)
    return {name: count.outside / max(1, count.total) for name, count in counts.items()}


class _Statistics(Protocol):
    """Is told the inputs of one layer, shape ``(..., channels)``, fp32."""

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
    """Return name -> statistics of the inputs of every linear layer with a range, from a pass over ``batches``."""
    seen = {
        layer.name: statistics(layer.weight_shape[1])
        for layer in layers
        if layer.kind is LayerKind.LINEAR and layer.name in calibration.ranges
    }
    looks = {name: _add_to(of_layer) for name, of_layer in seen.items()}
    with _watched(model, looks), torch.inference_mode():
        for batch in batches:
            forward(model, batch)
    return seen


#: Looks at the input of a layer.
_Look = Callable[[torch.Tensor], None]


@contextmanager
def _watched(model: nn.Module, looks: Mapping[str, _Look]) -> Iterator[None]:
    """Have the named layers' inputs looked at while the context is open."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_shown_to(look), with_kwargs=True)
        for name, look in looks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shown_to(look: _Look) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    return lambda _, args, kwargs: look(layer_input(args, kwargs))


@dataclass(slots=True)
class _Clipping:
    """Values seen, and those of them outside the range."""

    total: int = 0
    outside: int = 0


def _count(known: ActivationRange, counts: _Clipping) -> _Look:
    def look(x: torch.Tensor) -> None:
        inside = (x >= known.low) & (x <= known.high)
        counts.total += inside.numel()
        counts.outside += inside.numel() - int(inside.sum())

    return look


def _add_to(statistics: _Statistics) -> _Look:
    return lambda x: statistics.add(x.to("cpu", torch.float32))


def _observe(name: str, histogram: RangeHistogram, means: ChannelMeans | None) -> _Look:
    def look(x: torch.Tensor) -> None:
        values = x.to("cpu", torch.float32)
        if not torch.isfinite(values).all():
            raise CalibrationError(
                f"calibration needs finite inputs, but layer {name!r} saw nan or inf; look for overflow upstream"
            )
        histogram.add(values)
        if means is not None:
            means.add(values)

    return look
