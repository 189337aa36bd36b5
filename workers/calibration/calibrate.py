"""The calibration pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from search_spaces.layer import Layer, LayerKind
from workers.calibration.histogram import RangeHistogram
from workers.calibration.observers import observed_range, summary
from workers.errors import CalibrationError
from workers.setup import Calibration, CalibrationSettings
from workers.task import Batch


def calibrate(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], torch.Tensor],
    settings: CalibrationSettings,
) -> Calibration:
    """Return range and histogram of the input of every layer that may be quantized, from one pass over ``batches``.

    The full-precision model is observed, so ranges do not depend on what other layers will take.
    Embeddings have no range: their inputs are indices.

    Raises:
        CalibrationError: if a layer saw no data, or an input is not finite.
    """
    start = time.perf_counter()
    histograms = {
        layer.name: RangeHistogram()
        for layer in layers
        if layer.kind is not LayerKind.EMBEDDING and layer.frozen_reason is None
    }
    with _observing(model, histograms), torch.inference_mode():
        samples = sum(len(forward(model, batch)) for batch in batches)
    for name, histogram in histograms.items():
        if not histogram.total:
            raise CalibrationError(
                f"calibration needs data for every layer, but {name!r} saw none in {len(batches)} batches; "
                "give the task calibration batches that run the whole model"
            )
    ranges = {name: observed_range(histogram, settings) for name, histogram in histograms.items()}
    summaries = {name: summary(histogram, ranges[name]) for name, histogram in histograms.items()}
    return Calibration(ranges=ranges, histograms=summaries, samples=samples, seconds=time.perf_counter() - start)


@contextmanager
def _observing(model: nn.Module, histograms: Mapping[str, RangeHistogram]) -> Iterator[None]:
    """Count the inputs of the named layers while the context is open."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_observe(name, histogram))
        for name, histogram in histograms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observe(name: str, histogram: RangeHistogram) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].to("cpu", torch.float32)
        if not torch.isfinite(values).all():
            raise CalibrationError(
                f"calibration needs finite inputs, but layer {name!r} saw nan or inf; look for overflow upstream"
            )
        histogram.add(values)

    return hook
