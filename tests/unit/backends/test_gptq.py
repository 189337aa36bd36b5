"""Second moments of inputs, and weights rounded by them."""

import base64
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autotune.jobs.spec import JobSpec
from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, SecondMoments
from workers.backends.cpu.backend import CpuBackend
from workers.backends.packed import range_of
from workers.backends.rounding import gptq
from workers.backends.rounding.weights import INT4_GROUP, int4_per_group
from workers.calibration.calibrate import calibrate, with_moments
from workers.calibration.moments import MomentSketch
from workers.errors import CalibrationError
from workers.setup import Calibration, CalibrationSettings

GPTQ, NEAREST = CHOICES["int4_weight_only_gptq"], CHOICES["int4_weight_only"]


def inputs(features: int, directions: int, seed: int = 0) -> torch.Tensor:
    """Inputs that are mostly mixtures of a few directions, with channels of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(1024, directions, generator=generator) @ torch.randn(directions, features, generator=generator)
    noise = 0.05 * torch.randn(1024, features, generator=generator)
    return (mixed + noise) * torch.rand(features, generator=generator)


def moments(x: torch.Tensor) -> SecondMoments:
    sketch = MomentSketch(x.shape[1])
    sketch.add(x)
    return sketch.moments()


def matrix(found: SecondMoments) -> torch.Tensor:
    """The mean products that ``found`` stands for, beside its diagonal."""
    rows = np.frombuffer(found.integers(), dtype=np.int8).reshape(len(found.scales), -1)
    factors = torch.from_numpy(rows * np.array(found.scales)[:, None])
    return factors.T @ factors


def weights(outputs: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("features", [96, 320], ids=["exact", "sketched"])
def test_moments_are_those_of_the_inputs(features: int) -> None:
    x = inputs(features, directions=12)
    found, exact = moments(x), (x.double().T @ x.double()) / len(x)
    assert found.squares == pytest.approx(exact.diagonal().tolist(), rel=1e-3)
    # Bytes hold each direction to a few thousandths.
    assert float((matrix(found) - exact).norm() / exact.norm()) < 0.02


def test_moments_do_not_depend_on_how_the_data_was_split() -> None:
    x = inputs(320, directions=12)
    sketch = MomentSketch(320)
    for part in (x[:0], x[:100].view(4, 25, 320), x[100:]):
        sketch.add(part)
    whole, parts = moments(x), sketch.moments()
    assert whole.squares == parts.squares
    torch.testing.assert_close(matrix(parts), matrix(whole), rtol=0.02, atol=1e-3 * float(matrix(whole).abs().max()))


@pytest.mark.parametrize("features", [64, 320])
def test_inputs_that_are_always_zero_round_to_the_nearest(features: int) -> None:
    found = moments(torch.zeros(5, features))
    assert set(found.squares) == {0.0}
    weight = weights(16, features)
    assert torch.equal(int4_per_group(weight, found)[0], int4_per_group(weight)[0])


def dense(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, hessian: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """GPTQ as its authors wrote it: errors go to the columns to come by the Cholesky factor of the inverse."""
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order]), upper=True)
    left, steps = weight.double()[:, order], torch.empty(weight.shape, dtype=torch.int32)
    for place, column in enumerate(order.tolist()):
        scale, zero = scales[:, column // INT4_GROUP], zeros[:, column // INT4_GROUP]
        nearest = ((left[:, place] - zero) / scale).round().clamp(-8, 7)
        steps[:, column] = nearest.int()
        error = (left[:, place] - nearest * scale - zero) / factor[place, place]
        left[:, place:] -= error[:, None] * factor[place, place:]
    return steps


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([32, 96, 160, 288]), st.integers(1, 40))
def test_it_rounds_as_with_the_inverse_of_the_whole_matrix(seed: int, features: int, directions: int) -> None:
    found, weight = moments(inputs(features, directions, seed)), weights(24, features, seed)
    _, scales, zeros = (part.double() for part in int4_per_group(weight))
    diagonal, factors = gptq._parts(found)
    order = torch.argsort(torch.tensor(found.squares), descending=True, stable=True)
    expected = dense(weight, scales, zeros, torch.diag(diagonal) + factors @ factors.T, order)
    steps = gptq.rounded_steps(weight, scales, zeros, INT4_GROUP, found)
    assert steps.min() >= -8
    assert steps.max() <= 7
    assert torch.equal(steps, expected)


def test_outputs_are_nearer_where_inputs_are_alike() -> None:
    x, linear = inputs(64, directions=6), nn.Sequential(nn.Linear(64, 48)).eval()
    layers = discover(linear, lambda m: m(x))
    found = calibrate(linear, layers, [x], lambda m, batch: m(batch), CalibrationSettings())
    found = with_moments(found, linear, layers, [x], lambda m, batch: m(batch))
    assert (found.moments_seconds or 0.0) > 0.0
    fresh = inputs(64, directions=6)[:500]
    with torch.inference_mode():
        exact = linear(fresh)
        error = {
            choice.name: float((CpuBackend().prepare(linear[0], choice, found.ranges["0"])(fresh) - exact).norm())
            for choice in (NEAREST, GPTQ)
        }
    assert error["int4_weight_only_gptq"] < error["int4_weight_only"] / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"squares": ()}, "must be finite and not negative, but got none"),
        ({"squares": (1.0, -1.0)}, "not negative, but got -1.0"),
        ({"scales": (float("nan"),)}, "not negative, but got nan"),
        ({"basis": "%%"}, "must be base64, but got '%%'"),
        ({"basis": "AAAA"}, "needs 2 bytes for 1 scales and 2 channels, but has 3"),
    ],
)
def test_what_is_no_second_moment_is_refused(wrong: dict[str, object], message: str) -> None:
    right = {"squares": (1.0, 2.0), "scales": (0.5,), "basis": base64.b64encode(b"\x01\xff").decode()}
    SecondMoments(**right)  # type: ignore[arg-type]
    with pytest.raises(MapError, match=message):
        SecondMoments(**right | wrong)  # type: ignore[arg-type]


def test_layers_without_moments_are_refused_everywhere() -> None:
    known, x = ActivationRange(low=-1.0, high=1.0), inputs(64, directions=6)
    (layer,) = discover(nn.Sequential(nn.Linear(64, 48)), lambda m: m(x))
    calibration = Calibration(ranges={"0": known}, samples=1, seconds=0.0)
    assert "only if search.choices includes int4_weight_only_gptq" in str(calibration.refuses(layer, GPTQ))
    assert calibration.refuses(layer, NEAREST) is None
    with pytest.raises(MapError, match="GPTQ layers need calibrated second moments, but 0 have none"):
        QuantizationMap.from_names({"0": GPTQ.name}, {"0": known})
    with pytest.raises(CalibrationError, match="int4_weight_only_gptq needs calibrated second moments"):
        range_of(GPTQ, known)
    full = dataclasses.replace(known, moments=moments(x))
    assert dataclasses.replace(calibration, ranges={"0": full}).refuses(layer, GPTQ) is None
    assert QuantizationMap.from_names({"0": GPTQ.name}, {"0": full}).moments("0") == full.moments
    assert QuantizationMap.from_names({"0": NEAREST.name}, {"0": full}).moments("0") is None


@pytest.mark.parametrize(
    ("search", "sought"),
    [
        ({}, False),
        ({"choices": ["fp32", "int4_weight_only_gptq"]}, True),
        ({"choices": ["fp32"], "layers": [{"pattern": "*", "pin": "int4_weight_only_gptq"}]}, True),
    ],
)
def test_moments_are_calibrated_if_a_job_can_use_them(search: dict[str, object], sought: bool) -> None:
    spec = JobSpec.parse({"name": "n", "task": {"name": "t"}, "search": search})
    assert spec.worker_setup().calibration.moments is sought
