"""Factors that smooth inputs: what they do to outliers, and that they change nothing but the rounding."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autotune.jobs.spec import JobSpec
from search_spaces.choice import CHOICES, choice_named
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, Smoothing
from workers.backends.cpu.backend import CpuBackend
from workers.backends.packed import range_of
from workers.backends.rounding.weights import int8_per_channel
from workers.backends.smoothed import multiplied
from workers.calibration import smoothing as calibration_smoothing
from workers.calibration.calibrate import calibrate, with_smoothing
from workers.calibration.significant_digits import shortened
from workers.calibration.smoothing import ChannelStatistics, smoothing
from workers.errors import CalibrationError
from workers.setup import Calibration, CalibrationSettings

SMOOTH, STATIC = CHOICES["int8_static_smooth"], CHOICES["int8_static"]
FEATURES = 64


def inputs(*, outlier: float) -> torch.Tensor:
    """Inputs one channel of which reaches further than all others."""
    x = torch.randn(256, FEATURES, generator=torch.Generator().manual_seed(1))
    x[:, 5] *= outlier
    return x


def calibrated(model: nn.Module, x: torch.Tensor) -> Calibration:
    layers = discover(model, lambda m: m(x))
    found = calibrate(model, layers, [x], lambda m, batch: m(batch), CalibrationSettings())
    return with_smoothing(found, model, layers, [x], lambda m, batch: m(batch))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 48)).eval()


def test_smoothing_keeps_one_channel_from_coarsening_all() -> None:
    x, full, backend = inputs(outlier=60.0), model(), CpuBackend()
    layer = discover(full, lambda m: m(x))[0]
    if backend.refuses(layer, SMOOTH):
        pytest.skip("the processor has no 8-bit products")
    known = calibrated(full, x).ranges["0"]
    with torch.inference_mode():
        exact = full[0](x)
        error = {
            choice.name: float((backend.prepare(full[0], choice, known)(x) - exact).norm() / exact.norm())
            for choice in (STATIC, SMOOTH)
        }
    assert error["int8_static_smooth"] < error["int8_static"] / 2


def test_statistics_do_not_depend_on_how_the_data_was_split() -> None:
    x = inputs(outlier=3.0)
    whole, parts = ChannelStatistics(FEATURES), ChannelStatistics(FEATURES)
    whole.add(x)
    for part in (x[:0], x[:100].view(4, 25, FEATURES), x[100:]):
        parts.add(part)
    assert whole.rows == parts.rows == 256
    assert torch.equal(whole.low, parts.low)
    assert torch.equal(whole.high, parts.high)
    torch.testing.assert_close(whole.squares, parts.squares)


def test_the_smoothed_range_covers_the_divided_inputs() -> None:
    x, full = inputs(outlier=9.0), model()
    found = calibrated(full, x).ranges["0"].smoothing
    assert found is not None
    divided = x / torch.tensor(found.factors)
    assert (found.low, found.high) == pytest.approx((float(divided.min()), float(divided.max())), rel=1e-5)
    assert found.range == ActivationRange(low=found.low, high=found.high)


def expected_error(x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor, bits: int) -> float:
    """The error of rounding one input after the other and one weight after the other, summed over the outputs."""
    divided, scaled = x.double() / factors, weight.double() * factors
    step = float(max(divided.max(), 0.0) - min(divided.min(), 0.0)) / 255.0
    total = 0.0
    for row, exact in zip(scaled, weight.double(), strict=True):
        scale = float(row.abs().max()) / (2 ** (bits - 1) - 1) or 1.0
        off = (row / scale).round() * scale / factors - exact
        total += float((row**2).sum()) * step**2 / 12.0 + float((off**2 * (x.double() ** 2).mean(dim=0)).sum())
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 8.0, 60.0]), st.sampled_from([8, 7]))
def test_the_factors_are_those_of_least_expected_error(seed: int, outlier: float, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(16, 6, generator=generator), torch.randn(4, 6, generator=generator)
    x[:, seed % 6] *= outlier
    seen = ChannelStatistics(6)
    seen.add(x)
    found = smoothing(seen, weight, bits).factors
    # Strength s divides a channel by max |x|^s / max |w|^(1 - s); it makes the maxima of the two equal at one half.
    reach, largest = x.abs().amax(dim=0), weight.abs().amax(dim=0)
    exact = [torch.ones(6), *(reach**s / largest ** (1.0 - s) for s in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))]
    tried = {tuple(map(shortened, factors.tolist())) for factors in exact}
    assert found in tried
    errors = {factors: expected_error(x, weight, torch.tensor(factors), bits) for factors in tried}
    assert errors[found] == pytest.approx(min(errors.values()), rel=1e-4)


def test_channels_that_are_always_zero_have_a_factor() -> None:
    seen = ChannelStatistics(FEATURES)
    seen.add(torch.zeros(3, FEATURES))
    found = smoothing(seen, torch.zeros(8, FEATURES))
    assert (len(found.factors), found.low, found.high) == (FEATURES, 0.0, 0.0)


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), min_size=4, max_size=4))
def test_division_and_multiplication_cancel_out(factors: list[float]) -> None:
    linear, x = nn.Linear(4, 3), torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    before = linear.weight.clone()
    divided = x / torch.tensor(factors)  # by powers of two, which is exact
    torch.testing.assert_close(multiplied(linear, torch.tensor(factors))(divided), linear(x))
    assert torch.equal(linear.weight, before)


def test_only_linear_layers_have_factors_and_their_seconds_are_recorded() -> None:
    network = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(60, 3)).eval()
    found = calibrated(network, torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)))
    assert found.ranges["0"].smoothing is None
    assert len((found.ranges["2"].smoothing or pytest.fail("none")).factors) == 60
    assert found.smoothing_seconds is not None
    assert found.smoothing_seconds > 0.0


@pytest.mark.parametrize("factors", [(), (1.0, 0.0), (1.0, float("inf")), (float("nan"),)])
def test_factors_are_positive_and_finite(factors: tuple[float, ...]) -> None:
    with pytest.raises(MapError, match="smoothing needs positive, finite factors, but got"):
        Smoothing(factors=factors, low=0.0, high=1.0)


def test_layers_without_factors_are_refused_everywhere() -> None:
    known, full = ActivationRange(low=-1.0, high=1.0), model()
    (layer,) = discover(full, lambda m: m(inputs(outlier=1.0)))
    calibration = Calibration(ranges={"0": known}, samples=1, seconds=0.0)
    assert "only if search.choices includes int8_static_smooth" in str(calibration.refuses(layer, SMOOTH))
    assert calibration.refuses(layer, STATIC) is None
    with pytest.raises(MapError, match="smoothed layers need calibrated factors, but 0 have none"):
        QuantizationMap.from_names({"0": "int8_static_smooth"}, {"0": known})
    with pytest.raises(CalibrationError, match="int8_static_smooth needs calibrated factors"):
        range_of(SMOOTH, known)
    smoothed = dataclasses.replace(known, smoothing=Smoothing(factors=(1.0,) * FEATURES, low=0.0, high=1.0))
    assert dataclasses.replace(calibration, ranges={"0": smoothed}).refuses(layer, SMOOTH) is None
    assert QuantizationMap.from_names({"0": "int8_static_smooth"}, {"0": smoothed}).smoothing("0") == smoothed.smoothing


@pytest.mark.parametrize(
    ("search", "sought"),
    [
        ({}, False),
        ({"choices": ["fp32", "int8_static_smooth"]}, True),
        ({"choices": ["fp32"], "layers": [{"pattern": "*", "pin": "int8_static_smooth"}]}, True),
    ],
)
def test_factors_are_calibrated_if_a_job_can_use_them(search: dict[str, object], sought: bool) -> None:
    spec = JobSpec.parse({"name": "n", "task": {"name": "t"}, "search": search})
    assert spec.worker_setup().calibration.smoothing is sought
    assert not choice_named("int8_static").is_smooth


@pytest.mark.parametrize(("weight_bits", "bits"), [({"0": 8}, 8), ({"0": 7}, 7), ({"another": 7}, 8)])
def test_factors_are_judged_by_the_bits_that_weights_will_have(
    monkeypatch: pytest.MonkeyPatch, weight_bits: dict[str, int], bits: int
) -> None:
    tried: list[int] = []

    def rounded(weight: torch.Tensor, *, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(bits)
        return int8_per_channel(weight, bits=bits)

    monkeypatch.setattr(calibration_smoothing, "int8_per_channel", rounded)
    x = inputs(outlier=60.0)
    layers = discover(model(), lambda m: m(x))
    forward = (model(), layers, [x], lambda m, batch: m(batch))
    with_smoothing(calibrate(*forward, CalibrationSettings()), *forward, weight_bits)
    assert set(tried) == {bits}
