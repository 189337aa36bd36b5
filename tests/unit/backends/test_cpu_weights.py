import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.choice import CHOICES
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.kernels import KERNELS, Kernel
from workers.backends.cpu.selection import only
from workers.backends.rounding import weights as weight_rounding
from workers.backends.rounding.weights import INT4_GROUP, int4_per_group, int8_per_channel
from workers.device.processor import this_processor

SEEDS = st.integers(0, 2**31)
SIZES = st.sampled_from([1e-20, 1e-3, 1.0, 1e6])


def weights(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None)
@given(seed=SEEDS, outputs=st.integers(1, 6), features=st.integers(1, 40), size=SIZES)
def test_int8_is_within_half_a_step(
    scale_dtype: torch.dtype, seed: int, outputs: int, features: int, size: float
) -> None:
    weight = size * weights(seed, outputs, features, 3)
    values, scales = int8_per_channel(weight, scale_dtype)
    assert values.dtype == torch.int8
    assert scales.dtype == scale_dtype
    assert values.abs().max() <= 127
    steps = scales.float().view(-1, 1, 1)
    # A scale rounded down to bf16 clips the largest weight too, but by a quarter of a step at most.
    assert ((values * steps - weight).abs() <= 0.501 * steps).all()


@pytest.mark.parametrize("most_bytes", [1, 4 * 64 * 3])
def test_large_weights_are_rounded_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    weight, kernel = weights(0, 16, 64), weights(1, 7, 4, 3).transpose(1, 2)

    def rounded() -> list[torch.Tensor]:
        return [*int8_per_channel(weight), *int8_per_channel(kernel), *int4_per_group(weight)]

    whole = rounded()
    monkeypatch.setattr(weight_rounding, "_BYTES_AT_ONCE", most_bytes)
    in_parts = rounded()
    assert all(torch.equal(one, other) for one, other in zip(whole, in_parts, strict=True))
    assert all(found.is_contiguous() for found in in_parts)


def test_int8_takes_a_step_for_each_channel() -> None:
    values, scales = int8_per_channel(torch.tensor([[127.0, -1.0], [0.5, -1.27]]))
    torch.testing.assert_close(scales, torch.tensor([1.0, 0.01]))
    assert values.tolist() == [[127, -1], [50, -127]]


@settings(deadline=None)
@given(seed=SEEDS, outputs=st.integers(1, 4), groups=st.integers(1, 3), size=SIZES, shift=st.sampled_from([0.0, 50.0]))
def test_int4_is_within_little_more_than_half_a_step(
    seed: int, outputs: int, groups: int, size: float, shift: float
) -> None:
    weight = size * (weights(seed, outputs, groups * INT4_GROUP) + shift)
    values, scales, zeros = int4_per_group(weight)
    assert values.dtype == torch.int32
    assert scales.shape == zeros.shape == (outputs, groups)
    assert values.min() >= 0
    assert values.max() <= 15
    steps = scales.float()[..., None]
    levels = values.reshape(outputs, groups, INT4_GROUP) - 8
    dequantized = levels * steps + zeros.float()[..., None]
    # The rounded scale moves the far end by up to 15 / 512 of a step, the rounded zero by 8 / 512.
    assert ((dequantized - weight.reshape_as(dequantized)).abs() <= 0.55 * steps).all()


def test_weights_of_zero_stay_zero() -> None:
    values, scales = int8_per_channel(torch.zeros(2, 3))
    assert not values.any()
    assert torch.isfinite(scales).all()
    levels, scales, zeros = int4_per_group(torch.zeros(2, INT4_GROUP))
    assert torch.isfinite(scales).all()
    assert ((levels - 8) * scales.float() + zeros.float()).abs().max() < 1e-30


LINEAR = [
    pytest.param(kernel, choice, id=f"{kernel.name}-{choice}")
    for kernel in KERNELS
    if LayerKind.LINEAR in kernel.kinds
    for choice in kernel.choices
    if not (CHOICES[choice].is_smooth or CHOICES[choice].is_gptq)
]


@pytest.mark.parametrize(("kernel", "choice"), LINEAR)
def test_inputs_may_have_any_layout(kernel: Kernel, choice: str) -> None:
    wanted = CHOICES[choice].with_weight_bits(7)
    lacking = kernel.lacks(this_processor(), wanted)
    if lacking is not None:
        pytest.skip(lacking)
    with torch.inference_mode():
        layer = only(kernel, []).prepare(torch.nn.Linear(64, 64), wanted, ActivationRange(low=-4.0, high=4.0))
        # Attention over pixels reads (samples, channels, pixels) transposed, which a batch of one leaves as it is.
        x = weights(0, 1, 64, 4).transpose(1, 2)
        # bf16 products of another order round to the neighbouring number now and then.
        torch.testing.assert_close(layer(x), layer(x.contiguous()), rtol=0.0, atol=0.02 if "bf16" in choice else 1e-5)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63)])
def test_int8_takes_the_bits_it_is_given(bits: int, largest: int) -> None:
    weight = weights(0, 6, 40)
    values, scales = int8_per_channel(weight, bits=bits)
    assert values.abs().amax(dim=1).tolist() == [largest] * 6
    assert ((values * scales[:, None] - weight).abs() <= 0.501 * scales[:, None]).all()
