"""The calibration pass."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from search_spaces.layer import Layer, LayerKind
from workers.calibration.histogram import RangeHistogram
from workers.calibration.observers import observed_range
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
    """Return the input range of every layer with floating-point input, from one pass over ``batches``.

    The full-precision model is observed, so ranges do not depend on what other layers will take.

    Raises:
        CalibrationError: if there is no data, or an input is not finite.
    """
    start = time.perf_counter()
    observed = [layer.name for layer in layers if layer.kind is not LayerKind.EMBEDDING and layer.calls]
    histograms = {name: RangeHistogram() for name in observed}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_observe(name, histogram))
        for name, histogram in histograms.items()
    ]
    samples = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                samples += len(forward(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    unseen = [name for name, histogram in histograms.items() if not histogram.total]
    if unseen:
        raise CalibrationError(
            f"calibration needs data for every layer, but {unseen[0]!r} saw none in {len(batches)} batches; "
            "give the task calibration batches that run the whole model"
        )
    ranges = {name: observed_range(histogram, settings) for name, histogram in histograms.items()}
    return Calibration(ranges=ranges, samples=samples, seconds=time.perf_counter() - start)


def _observe(name: str, histogram: RangeHistogram) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].detach().to(torch.float32).cpu()
        if not torch.isfinite(values).all():
            raise CalibrationError(
                f"calibration needs finite inputs, but layer {name!r} saw nan or inf; look for overflow upstream"
            )
        histogram.add(values.numpy())

    return hook
