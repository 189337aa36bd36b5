"""Integers of inputs and of rows: bit for bit those of PyTorch's quantized tensors, without making any."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.backends.cpu.int8_products import FbgemmProduct, Int8Product, OneDnnProduct, WidenedProduct
from workers.backends.rounding.activations import to_steps, to_uint8
from workers.backends.rounding.weights import affine_per_row, in_pairs
from workers.device.processor import this_processor

#: On other processors, PyTorch's quantized tensors round before they add the zero point.
AS_ON_X86 = pytest.mark.skipif(
    not this_processor().is_x86 or not hasattr(torch, "quantize_per_tensor"),
    reason="compares with quantized tensors of PyTorch on x86",
)
SEEDS = st.integers(0, 2**31)


def quantized(quantize: Any, *arguments: Any) -> torch.Tensor:
    """The integers of a quantized tensor of PyTorch, without its warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        integers: torch.Tensor = quantize(*arguments).int_repr()
    return integers


@st.composite
def inputs(draw: st.DrawFn) -> tuple[torch.Tensor, float, int]:
    """Inputs of every layout with a scale and a zero point: in and far beyond the range, between integers, infinite."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    shape = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3) | st.just([2, 5, 3, 7]))
    scale = draw(st.sampled_from([2.0**-20, 0.25, 2.0]) | st.floats(1e-12, 1e3))
    x = torch.randn(shape, generator=generator) * draw(st.sampled_from([1.0, 100.0, 1e4, 1e9])) * scale
    if draw(st.booleans()):
        x = (torch.randint(-300, 300, shape, generator=generator) + 0.5) * scale
    if x.numel() and draw(st.booleans()):
        x.view(-1)[0], x.view(-1)[-1] = float("inf"), float("-inf")
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    elif draw(st.booleans()):
        x = x.transpose(0, -1)
    return x, scale, draw(st.integers(0, 255))


@AS_ON_X86
@settings(deadline=None, max_examples=300)
@given(inputs())
def test_inputs_become_the_integers_of_quantized_tensors(case: tuple[torch.Tensor, float, int]) -> None:
    x, scale, zero_point = case
    found = to_uint8(x, scale, zero_point)
    assert found.dtype == torch.uint8
    assert torch.equal(found, quantized(torch.quantize_per_tensor, x, scale, zero_point, torch.quint8))
    assert torch.equal(to_steps(x, scale, zero_point), found.float() - zero_point)


@AS_ON_X86
def test_many_inputs_become_the_integers_of_quantized_tensors() -> None:
    # One in 100,000 is so near to the middle that it depends on each rounding.
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    for scale, zero_point in ((0.0313, 113), (0.0171, 128), (0.0299, 0)):
        expected = quantized(torch.quantize_per_tensor, x, scale, zero_point, torch.quint8)
        assert torch.equal(to_uint8(x, scale, zero_point), expected)


@pytest.mark.parametrize(
    ("zero_point", "integers"),
    [(0, [0, 0, 0, 0, 2, 2, 254, 255, 255]), (1, [0, 0, 1, 2, 2, 4, 255, 255, 255])],
)
def test_halves_go_to_the_even_integer_and_the_rest_to_the_ends(zero_point: int, integers: list[int]) -> None:
    x = torch.tensor([-float("inf"), -1.5, -0.0, 0.5, 1.5, 2.5, 254.5, 1e30, float("inf")])
    assert to_uint8(x, 1.0, zero_point).tolist() == integers


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_integers_keep_the_memory_format(layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=layout)
    assert to_uint8(x, 0.1, 3).is_contiguous(memory_format=layout)


@pytest.mark.skipif(not this_processor().is_x86, reason="x86 only")
@settings(deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 50), scale=st.floats(1e-6, 1e3), zero_point=st.integers(0, 255))
def test_all_kernels_take_the_same_integers(seed: int, rows: int, scale: float, zero_point: int) -> None:
    x = 100.0 * scale * torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))

    def integers(product: type[Int8Product]) -> torch.Tensor:
        # The products with ones are the steps themselves.
        made = product(torch.eye(64, dtype=torch.int8), torch.ones(64), None)(x, scale, zero_point, None)
        return torch.round(made.double() / scale) + zero_point

    expected = to_uint8(x, scale, zero_point).double()
    for product in (OneDnnProduct, FbgemmProduct, WidenedProduct):
        assert torch.equal(integers(product), expected), product


@AS_ON_X86
@pytest.mark.parametrize("bits", [8, 4])
@settings(deadline=None)
@given(
    seed=SEEDS,
    rows=st.integers(1, 30),
    pairs=st.integers(1, 40),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]),
    shift=st.sampled_from([0.0, 1.0, -50.0]),
)
def test_rows_become_the_integers_of_quantized_tensors(
    bits: int, seed: int, rows: int, pairs: int, size: float, shift: float
) -> None:
    weight = size * torch.randn(rows, 2 * pairs, generator=torch.Generator().manual_seed(seed)) + shift
    integers, scales, offsets = affine_per_row(weight, bits)
    storage = {8: torch.quint8, 4: torch.quint4x2}[bits]
    expected = quantized(torch.quantize_per_channel, weight, scales, -offsets / scales, 0, storage)
    assert torch.equal(integers if bits == 8 else in_pairs(integers), expected.view(rows, -1))


def test_the_first_of_two_integers_is_in_the_lower_half() -> None:
    assert in_pairs(torch.tensor([[1, 2, 15, 0]])).tolist() == [[0x21, 0x0F]]
