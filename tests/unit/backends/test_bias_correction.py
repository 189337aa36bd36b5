"""Biases that make up for the mean error of rounded weights, from calibration to the map."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autotune.jobs.spec import JobSpec
from search_spaces.choice import CHOICES, LayerChoice, Precision
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, Smoothing
from workers.backends.rounding.bias_correction import corrected
from workers.backends.rounding.weights import rounded
from workers.calibration.calibrate import calibrate
from workers.setup import CalibrationSettings

LAYERS: dict[str, Callable[[], nn.Linear | nn.Conv1d | nn.Conv2d]] = {
    "linear": lambda: nn.Linear(64, 5),
    "conv1d": lambda: nn.Conv1d(6, 4, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, 2, groups=2),
}
CORRECTED = [choice for choice in CHOICES.values() if choice.rounds_to_nearest]
#: Only linear layers are smoothed, or have groups of int4.
PAIRS = [
    (kind, choice)
    for kind in LAYERS
    for choice in CORRECTED
    if kind == "linear" or not (choice.is_smooth or choice.precision is Precision.INT4)
]


def means_of(layer: nn.Module, batches: list[torch.Tensor], *, asked: bool = True) -> tuple[float, ...] | None:
    model = nn.Sequential(layer).eval()
    layers = discover(model, lambda m: m(batches[0]))
    found = calibrate(model, layers, batches, lambda m, x: m(x), CalibrationSettings(bias_correction=asked))
    return found.ranges["0"].means


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Linear(3, 2), (4, 5, 3), -1), (nn.Linear(3, 2), (3,), -1), (nn.Conv1d(3, 2, 1), (4, 3, 6), 1),
        (nn.Conv2d(4, 2, 1, groups=2), (3, 4, 6, 5), 1), (nn.Conv2d(4, 2, 1), (4, 6, 5), 0),
    ],
)  # fmt: skip
def test_calibration_finds_the_mean_of_every_channel(layer: nn.Module, shape: tuple[int, ...], channels: int) -> None:
    batches = list(torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)))
    exact = torch.stack([x.movedim(channels, 0).flatten(1).mean(1) if x.dim() > 1 else x for x in batches]).mean(0)
    found = means_of(layer, batches)
    assert found == pytest.approx(exact.tolist(), rel=1e-3, abs=1e-6)
    assert all(len(f"{abs(mean):.10g}".replace(".", "").lstrip("0")) <= 4 for mean in found or ())


def test_every_value_counts_once_however_large_its_batch_is() -> None:
    x = torch.arange(30.0).reshape(10, 3)
    assert means_of(nn.Linear(3, 2), [x[:1], x[1:]]) == means_of(nn.Linear(3, 2), [x]) == (13.5, 14.5, 15.5)


def test_means_are_calibrated_only_where_they_are_used() -> None:
    x = torch.ones(2, 3, 8)
    assert means_of(nn.Linear(8, 2), [x], asked=False) is None
    assert means_of(nn.Linear(8, 2, bias=False), [x]) is None
    assert means_of(nn.ConvTranspose1d(3, 2, 2), [x]) is None
    assert means_of(nn.LSTM(8, 2), [x]) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PAIRS))
def test_the_mean_input_has_the_output_of_full_precision(seed: int, pair: tuple[str, LayerChoice]) -> None:
    kind, choice = pair
    torch.manual_seed(seed)
    layer = LAYERS[kind]().eval()
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    means, factors = 3.0 * torch.randn(channels), torch.rand(channels) + 0.5
    smoothing = Smoothing(factors=tuple(factors.tolist()), low=-1.0, high=1.0)
    known = ActivationRange(low=-1.0, high=1.0, smoothing=smoothing, means=tuple(means.tolist()))
    twin = corrected(layer, choice, known)
    assert isinstance(twin, type(layer))
    constant = means.view(-1, *[1] * (layer.weight.dim() - 2)).expand(-1, *[4] * (layer.weight.dim() - 2))
    scales = factors if choice.is_smooth else torch.ones(())
    with torch.no_grad():
        exact = layer(constant)
        layer.weight = twin.weight = nn.Parameter(rounded(layer.weight * scales, choice, by_row=False) / scales)
        error, without = ((model(constant) - exact).norm() for model in (twin, layer))
    assert float(error) <= 1e-3 * float(without) + 1e-5


def test_only_the_bias_is_new() -> None:
    layer, known = nn.Linear(64, 4), ActivationRange(low=-1.0, high=1.0, means=(2.0,) * 64)
    before = layer.bias
    twin = corrected(layer, CHOICES["int8_static"], known)
    assert isinstance(twin, nn.Linear)
    assert twin.weight is layer.weight
    assert layer.bias is before
    assert not torch.equal(twin.bias, before)


@pytest.mark.parametrize("choice", ["fp32", "bf16", "fp8_dynamic", "int4_weight_only_gptq"])
def test_what_is_not_rounded_to_integers_one_by_one_is_left_alone(choice: str) -> None:
    layer, known = nn.Linear(64, 4), ActivationRange(low=-1.0, high=1.0, means=(2.0,) * 64)
    assert corrected(layer, CHOICES[choice], known) is layer


def test_nothing_is_corrected_without_means_or_without_a_bias() -> None:
    known, choice = ActivationRange(low=-1.0, high=1.0, means=(2.0,) * 64), CHOICES["int8_dynamic"]
    bare, full = nn.Linear(64, 4, bias=False), nn.Linear(64, 4)
    assert corrected(bare, choice, known) is bare
    assert corrected(full, choice, replace(known, means=None)) is corrected(full, choice, None) is full


@pytest.mark.parametrize(("means", "told"), [((), "none"), ((1.0, math.nan), "nan"), ((math.inf,), "inf")])
def test_what_is_no_mean_is_refused(means: tuple[float, ...], told: str) -> None:
    with pytest.raises(MapError, match=f"means of input channels must be finite, but got {told}"):
        ActivationRange(low=-1.0, high=1.0, means=means)


@pytest.mark.parametrize("asked", [False, True])
def test_a_job_asks_for_it(asked: bool) -> None:
    section = {"calibration": {"bias_correction": True}} if asked else {}
    spec = JobSpec.parse({"name": "n", "task": {"name": "t"}, **section})
    assert spec.worker_setup().calibration.bias_correction is asked
