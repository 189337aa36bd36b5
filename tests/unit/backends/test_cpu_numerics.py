"""The kernels against float64 fake quantization written here."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.errors import MapError
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS, Kernel
from workers.backends.cpu.selection import only
from workers.backends.packed import range_of
from workers.backends.rounding.weights import INT4_GROUP
from workers.device.processor import this_processor
from workers.errors import CalibrationError

BACKEND = CpuBackend()
BF16_STEP = 2.0**-8

W8A8 = pytest.mark.parametrize("mode", ["static", "dynamic"])
BITS = pytest.mark.parametrize("bits", [8, 7])


def by_kernel(kind: LayerKind, choice: str) -> pytest.MarkDecorator:
    """Have a test run with every kernel that computes a choice of a kind of layers."""
    return pytest.mark.parametrize(
        "kernel", [k for k in KERNELS if kind in k.kinds and choice in k.choices], ids=lambda kernel: kernel.name
    )


def prepare(module: nn.Module, choice: str, input_range: ActivationRange | None = None) -> nn.Module:
    return BACKEND.prepare(module, CHOICES[choice], input_range)


def prepare_by(
    kernel: Kernel, module: nn.Module, choice: str, bits: int = 8, input_range: ActivationRange | None = None
) -> nn.Module:
    wanted = CHOICES[choice].with_weight_bits(bits)
    lacking = kernel.lacks(this_processor(), wanted)
    if lacking is not None:
        pytest.skip(lacking)
    with torch.no_grad():
        return only(kernel, []).prepare(module, wanted, range_of(wanted, input_range))


def off_ties(levels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Integers moved by up to 0.4: values whose rounding no float32 error can change."""
    return levels + 0.8 * (torch.rand(levels.shape, generator=generator, dtype=torch.float64) - 0.5)


def weight_of(shape: tuple[int, ...], generator: torch.Generator, bits: int = 8) -> torch.Tensor:
    """Weights whose channels reach 127 or 63 steps each, with steps of different size."""
    largest = {8: 127, 7: 63}[bits]
    levels = off_ties(torch.randint(1 - largest, largest, shape, generator=generator).double(), generator)
    levels.view(shape[0], -1)[:, 0] = largest
    steps = torch.rand(shape[0], generator=generator, dtype=torch.float64) + 0.1
    return (levels * steps.view(-1, *[1] * (len(shape) - 1)) / 100).float()


def input_of(shape: tuple[int, ...], generator: torch.Generator, *, step: float, zero_point: int) -> torch.Tensor:
    """Inputs that span 255 steps exactly, where there is room for both ends."""
    levels = off_ties(torch.randint(1, 255, shape, generator=generator).double(), generator)
    if levels.numel() > 1:
        levels.view(-1)[0], levels.view(-1)[-1] = 0.0, 255.0
    return ((levels - zero_point) * step).float()


def fake_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Per-channel symmetric integers of 8 or 7 bits in float64."""
    exact, largest = weight.double(), {8: 127, 7: 63}[bits]
    steps = exact.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.dim() - 1)) / largest
    return torch.round(exact / steps).clamp(-largest, largest) * steps


def fake_input(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Per-tensor asymmetric uint8 in float64."""
    step = (high - low) / 255
    zero_point = round(-low / step)
    return (torch.round(x.double() / step + zero_point).clamp(0, 255) - zero_point) * step


def set_weights(module: nn.Module, generator: torch.Generator, bits: int = 8) -> nn.Module:
    module.weight.data = weight_of(tuple(module.weight.shape), generator, bits)
    if module.bias is not None:
        module.bias.data = torch.randn(module.bias.shape, generator=generator)
    return module.eval()


def assert_integer_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6 * largest + 1e-12)


def bias_of(module: nn.Module) -> torch.Tensor | None:
    return None if module.bias is None else module.bias.detach().double()


@st.composite
def linear_cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "features": (draw(st.integers(1, 80)), draw(st.integers(1, 40))),
        "leading": tuple(draw(st.lists(st.integers(1, 5), max_size=3))),
        "bias": draw(st.booleans()),
        "zero_point": draw(st.integers(0, 255)),
        "strided": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@by_kernel(LayerKind.LINEAR, "int8_static")
@BITS
@W8A8
@settings(deadline=None, max_examples=40)
@given(case=linear_cases())
def test_linear_w8a8_is_integer_exact(mode: str, bits: int, kernel: Kernel, case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    linear = set_weights(nn.Linear(*case["features"], bias=case["bias"]), generator, bits)
    x = input_of((*case["leading"], case["features"][0]), generator, step=0.03, zero_point=case["zero_point"])
    if case["strided"]:
        x = x.unsqueeze(-1).repeat_interleave(2, dim=-1)[..., 0]
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    assume(low < high)
    prepared = prepare_by(kernel, linear, f"int8_{mode}", bits, ActivationRange(low=low, high=high))
    with torch.inference_mode():
        actual = prepared(x)
    expected = F.linear(fake_input(x, low, high), fake_weight(linear.weight.detach(), bits), bias_of(linear))
    assert_integer_exact(actual, expected)


@by_kernel(LayerKind.LINEAR, "int8_static")
@BITS
@W8A8
@pytest.mark.parametrize("features", [2, 64, 384, 2048])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_linear_w8a8_does_not_saturate(rows: int, features: int, mode: str, bits: int, kernel: Kernel) -> None:
    # All weights and inputs at their ends, of one sign and of both: neighbouring products add up to all there can be.
    largest = {8: 127.0, 7: 63.0}[bits]
    linear = nn.Linear(features, 32, bias=False).eval()
    linear.weight.data = largest * torch.tensor([1.0, -1.0]).repeat_interleave(16)[:, None].expand(32, features)
    linear.weight.data[8:24, ::2] *= -1.0
    calibrated = ActivationRange(low=0.0, high=255.0)
    x = torch.full((rows, features), 255.0)
    x[rows // 2 :, ::2] = 0.0
    with torch.inference_mode():
        actual = prepare_by(kernel, linear, f"int8_{mode}", bits, calibrated)(x)
        assert_integer_exact(actual, F.linear(x.double(), linear.weight.double()))


@by_kernel(LayerKind.LINEAR, "int8_static")
@BITS
@settings(deadline=None, max_examples=40)
@given(case=linear_cases())
def test_linear_by_token_is_integer_exact(bits: int, kernel: Kernel, case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    linear = set_weights(nn.Linear(*case["features"], bias=case["bias"]), generator, bits)
    shape = (*case["leading"], case["features"][0])
    levels = off_ties(torch.randint(-126, 127, shape, generator=generator).double(), generator)
    levels[..., 0] = 127.0
    steps = 10.0 ** torch.randint(-6, 6, (*case["leading"], 1), generator=generator).double()
    x = (levels * steps).float()
    if case["strided"]:
        x = x.unsqueeze(-1).repeat_interleave(2, dim=-1)[..., 0]
    with torch.inference_mode():
        actual = prepare_by(kernel, linear, "int8_dynamic_per_token", bits)(x)
    rows = torch.round(x.double() / (x[..., :1].double() / 127)) * (x[..., :1].double() / 127)
    expected = F.linear(rows, fake_weight(linear.weight.detach(), bits))
    bias = bias_of(linear)
    # Each row is as exact as it alone would be, however small beside the others.
    for own, exact in zip(actual.view(-1, actual.shape[-1]), expected.view(-1, expected.shape[-1]), strict=True):
        assert_integer_exact(own, exact if bias is None else exact + bias)


def test_tokens_do_not_coarsen_each_other() -> None:
    linear = nn.Linear(64, 8, bias=False).eval()
    x = torch.randn(3, 64) * torch.tensor([[1e-3], [1.0], [1e3]])
    alone = prepare(linear, "int8_dynamic_per_token")
    with torch.inference_mode():
        exact = linear(x)
        apart = {
            choice: (prepare(linear, choice)(x) - exact).norm(dim=1) / exact.norm(dim=1)
            for choice in ("int8_dynamic", "int8_dynamic_per_token")
        }
        assert torch.equal(alone(x)[:1], alone(x[:1])), "what else is in the batch does not matter"
    assert apart["int8_dynamic"][0] > 0.5
    assert apart["int8_dynamic_per_token"].max() < 0.02


def test_tokens_without_values_or_not_finite_are_told_by_their_own_outputs() -> None:
    linear = nn.Linear(8, 4).eval()
    x = torch.ones(4, 8)
    x[0], x[1, 3], x[2, 5] = 0.0, math.nan, math.inf
    with torch.inference_mode():
        outputs = prepare(linear, "int8_dynamic_per_token")(x)
        assert torch.equal(outputs[0], linear.bias)
        assert not outputs[1:3].isfinite().any()
        assert (outputs[3] - linear(x[3])).abs().max() < 0.02
        assert prepare(linear, "int8_dynamic_per_token")(torch.zeros(0, 8)).shape == (0, 4)


@st.composite
def conv_cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 2))
    unbatched = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    padding = draw(st.sampled_from(["same", "valid", "number"]))
    stride = (1,) * dims if padding == "same" else tuple(draw(st.integers(1, 2)) for _ in range(dims))
    return {
        "dims": dims,
        "batch": 1 if unbatched else draw(st.integers(1, 3)),
        "size": tuple(draw(st.integers(8, 11)) for _ in range(dims)),
        "channels_last": dims == 2 and draw(st.booleans()),
        "unbatched": unbatched,
        "zero_point": draw(st.integers(0, 255)),
        "seed": draw(st.integers(0, 2**31)),
        "arguments": {
            "in_channels": groups * draw(st.integers(1, 4)),
            "out_channels": groups * draw(st.integers(1, 5)),
            "kernel_size": kernel,
            "stride": stride,
            "padding": draw(st.integers(0, 2)) if padding == "number" else padding,
            "dilation": draw(st.integers(1, 2)),
            "groups": groups,
            "bias": draw(st.booleans()),
        },
    }


# An even kernel with "same" padding makes PyTorch pad unevenly, of which it warns in the original layer.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@by_kernel(LayerKind.CONV2D, "int8_static")
@BITS
@W8A8
@settings(deadline=None, max_examples=40)
@given(case=conv_cases())
def test_conv_w8a8_is_integer_exact(mode: str, bits: int, kernel: Kernel, case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[case["dims"]]
    conv = set_weights(kind(**case["arguments"]), generator, bits)
    shape = (case["batch"], conv.in_channels, *case["size"])
    x = input_of(shape, generator, step=0.03, zero_point=case["zero_point"])
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    oracle = kind(**case["arguments"]).double()
    oracle.load_state_dict(conv.state_dict())
    oracle.weight.data = fake_weight(conv.weight.detach(), bits)
    if case["channels_last"]:
        x = x.contiguous(memory_format=torch.channels_last)
    fake = fake_input(x, low, high)
    if case["unbatched"]:
        x, fake = x[0], fake[0]
    prepared = prepare_by(kernel, conv, f"int8_{mode}", bits, ActivationRange(low=low, high=high))
    with torch.inference_mode():
        assert_integer_exact(prepared(x), oracle(fake))


@by_kernel(LayerKind.CONV2D, "int8_static")
@BITS
@pytest.mark.parametrize("groups", [1, 64])
@pytest.mark.parametrize("size", [1, 3])
def test_conv_w8a8_does_not_saturate(size: int, groups: int, bits: int, kernel: Kernel) -> None:
    conv = nn.Conv2d(64, 64, size, groups=groups, bias=False).eval()
    conv.weight.data = {8: 127.0, 7: 63.0}[bits] * torch.ones_like(conv.weight)
    conv.weight.data[:32] *= -1.0
    x = torch.full((2, 64, 7, 7), 255.0)
    prepared = prepare_by(kernel, conv, "int8_static", bits, ActivationRange(low=0.0, high=255.0))
    with torch.inference_mode():
        assert_integer_exact(prepared(x), copy.deepcopy(conv).double()(x.double()))


@by_kernel(LayerKind.CONV2D, "int8_static")
@BITS
def test_depthwise_conv_is_integer_exact(bits: int, kernel: Kernel) -> None:
    # PyTorch 2.13's own conv2d_dynamic is wrong here.
    generator = torch.Generator().manual_seed(0)
    conv = set_weights(nn.Conv2d(64, 64, 3, padding=1, groups=64), generator, bits)
    x = input_of((2, 64, 9, 9), generator, step=0.02, zero_point=90)
    expected = F.conv2d(
        fake_input(x, x.min().item(), x.max().item()),
        fake_weight(conv.weight.detach(), bits),
        bias_of(conv),
        padding=1,
        groups=64,
    )
    with torch.inference_mode():
        assert_integer_exact(prepare_by(kernel, conv, "int8_dynamic", bits)(x), expected)


def test_static_range_clips_what_lies_outside() -> None:
    linear = nn.Linear(2, 1, bias=False).eval()
    linear.weight.data = torch.tensor([[1.0, 0.0]])
    prepared = prepare(linear, "int8_static", ActivationRange(low=-1.0, high=1.0))
    outputs = prepared(torch.tensor([[-50.0, 0.0], [0.0, 9.0], [50.0, 0.0]])).flatten()
    torch.testing.assert_close(outputs, torch.tensor([-1.0, 0.0, 1.0]), rtol=0, atol=0.01)


def test_dynamic_range_follows_each_input() -> None:
    linear = nn.Linear(64, 8).eval()
    prepared = prepare(linear, "int8_dynamic")
    x = torch.randn(3, 64)
    with torch.inference_mode():
        for size in (1e-3, 1.0, 1e3):
            exact = linear(size * x)
            assert (prepared(size * x) - exact).abs().max() < 0.02 * exact.abs().max()


def test_dynamic_takes_an_empty_input() -> None:
    assert prepare(nn.Linear(8, 4), "int8_dynamic")(torch.zeros(0, 8)).shape == (0, 4)


def test_dynamic_names_the_rule_when_the_input_is_not_finite() -> None:
    with pytest.raises(MapError, match="must be finite"):
        prepare(nn.Linear(8, 4), "int8_dynamic")(torch.full((2, 8), math.nan))


def test_static_without_a_range_is_refused() -> None:
    with pytest.raises(CalibrationError, match="int8_static needs the calibrated range"):
        prepare(nn.Linear(8, 4), "int8_static")


def dequantized(linear: nn.Linear, choice: str) -> torch.Tensor:
    """The weights a half-precision or weight-only choice multiplies with, in float64."""
    weight = linear.weight.detach()
    if choice in ("bf16", "fp16"):
        return weight.to({"bf16": torch.bfloat16, "fp16": torch.float16}[choice]).double()
    if choice == "int8_weight_only":
        steps = (weight.abs().amax(dim=1, keepdim=True) / 127).bfloat16().double()
        return torch.round(weight.double() / steps).clamp(-127, 127) * steps
    groups = weight.reshape(len(weight), -1, INT4_GROUP)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    steps = ((high - low) / 15).bfloat16()
    zeros = (low + 8 * steps.float()).bfloat16().double()
    levels = (torch.round((groups.double() - zeros) / steps.double()) + 8).clamp(0, 15)
    return ((levels - 8) * steps.double() + zeros).flatten(1)


@pytest.mark.parametrize(
    ("choice", "kernel"),
    [
        pytest.param(choice, kernel, id=f"{choice}-{kernel.name}")
        for choice in ("bf16", "fp16", "int8_weight_only", "int4_weight_only")
        for kernel in KERNELS
        if LayerKind.LINEAR in kernel.kinds and choice in kernel.choices
    ],
)
@settings(deadline=None, max_examples=40)
@given(
    outputs=st.integers(1, 5),
    groups=st.integers(1, 4),
    leading=st.lists(st.integers(1, 6), max_size=3),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear_without_quantized_inputs_is_right_to_bf16(
    choice: str, kernel: Kernel, outputs: int, groups: int, leading: list[int], bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = set_weights(nn.Linear(32 * groups, 16 * outputs, bias=bias), generator)
    x = torch.randn(*leading, 32 * groups, generator=generator)
    widens = kernel.name in ("fp32", "fbgemm")
    weight, inputs = dequantized(linear, choice), x.double() if widens else x.bfloat16().double()
    expected = F.linear(inputs, weight, bias_of(linear))
    largest = F.linear(inputs.abs(), weight.abs()) + (linear.bias.detach().double().abs() if bias else 0.0)
    with torch.inference_mode():
        actual = prepare_by(kernel, linear, choice)(x)
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert ((actual.double() - expected).abs() <= (1e-5 if widens else BF16_STEP) * largest).all()


BF16_CONV = next(kernel for kernel in KERNELS if LayerKind.CONV2D in kernel.kinds and kernel.choices == ("bf16",))


@pytest.mark.parametrize("dims", [1, 2])
def test_bf16_conv_is_right_to_bf16(dims: int) -> None:
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims](6, 8, 3, stride=2, padding=1, groups=2).eval()
    x = torch.randn(2, 6, *[11] * dims)
    oracle = {1: F.conv1d, 2: F.conv2d}[dims]
    geometry = {"stride": 2, "padding": 1, "groups": 2}
    rounded = [t.detach().bfloat16().double() for t in (x, conv.weight, conv.bias)]
    largest = oracle(*(t.abs() for t in rounded), **geometry)
    actual = prepare_by(BF16_CONV, conv, "bf16")(x).double()
    assert ((actual - oracle(*rounded, **geometry)).abs() <= BF16_STEP * largest).all()


def test_fp16_clamps_what_is_too_large() -> None:
    linear = nn.Linear(32, 16, bias=False).eval()
    linear.weight.data = torch.full_like(linear.weight, 1e6)
    for kernel in KERNELS:
        if LayerKind.LINEAR in kernel.kinds and "fp16" in kernel.choices:
            assert torch.equal(prepare_by(kernel, linear, "fp16")(torch.eye(32)), torch.full((32, 16), 65504.0))


CONV_LAYOUTS = [(kernel, weights, inputs) for kernel in (1, 3) for weights in (False, True) for inputs in (False, True)]


CONVOLVING = [(k, choice) for k in KERNELS if LayerKind.CONV2D in k.kinds for choice in k.choices]


@pytest.mark.parametrize(("kernel", "choice"), CONVOLVING, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize(("size", "weights_last", "input_last"), CONV_LAYOUTS)
def test_conv_output_has_the_memory_format_of_the_original(
    kernel: Kernel, choice: str, size: int, weights_last: bool, input_last: bool
) -> None:
    conv = nn.Conv2d(4, 8, size).eval()
    x = torch.randn(2, 4, 6, 6)
    conv = conv.to(memory_format=torch.channels_last) if weights_last else conv
    x = x.contiguous(memory_format=torch.channels_last) if input_last else x
    with torch.inference_mode():
        calibrated = ActivationRange(low=-4.0, high=4.0)
        original, actual = conv(x), prepare_by(kernel, conv, choice, 7 if "int8" in choice else 8, calibrated)(x)
    assert actual.stride() == original.stride()


@pytest.mark.parametrize(("bits", "choice"), [(8, "int8_weight_only"), (4, "int4_weight_only")])
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 30),
    features=st.integers(1, 20).map(lambda half: 2 * half),
    shape=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_embedding_rows_are_right_to_half_a_step(
    bits: int, choice: str, rows: int, features: int, shape: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = nn.Embedding(rows, features).eval()
    embedding.weight.data = torch.randn(rows, features, generator=generator)
    indices = torch.randint(0, rows, shape, generator=generator)
    actual = prepare(embedding, choice)(indices)
    exact = embedding(indices).detach()
    assert actual.shape == exact.shape
    assert actual.dtype == torch.float32
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    # int4 rows keep scale and offset in fp16, int8 rows in fp32.
    stored = 2.0**-11 if bits == 4 else 2.0**-22
    assert ((actual - exact).abs() <= 0.5 * step + stored * (high - low + low.abs()) + 1e-6).all()


@pytest.mark.parametrize(("choice", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_embedding_is_the_rounded_row(choice: str, dtype: torch.dtype) -> None:
    embedding = nn.Embedding(7, 5).eval()
    indices = torch.tensor([[0, 6], [3, 3]], dtype=torch.int32)
    assert torch.equal(prepare(embedding, choice)(indices), embedding.weight.detach()[indices].to(dtype).float())


@pytest.mark.parametrize("choice", ["int8_weight_only", "int4_weight_only"])
def test_embedding_of_equal_features_is_exact(choice: str) -> None:
    embedding = nn.Embedding(3, 4).eval()
    embedding.weight.data = torch.tensor([[0.0] * 4, [0.5] * 4, [-2.0] * 4])
    assert torch.equal(prepare(embedding, choice)(torch.arange(3)), embedding.weight.detach())


@pytest.mark.parametrize("choice", ["int8_dynamic", "int8_weight_only", "int4_weight_only"])
def test_weights_of_zero_give_the_bias(choice: str) -> None:
    linear = nn.Linear(32, 16).eval()
    nn.init.zeros_(linear.weight)
    torch.testing.assert_close(prepare(linear, choice)(torch.randn(3, 32)), linear.bias.detach().expand(3, 16))
